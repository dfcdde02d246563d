"""Locks on files and folders. The system lets go of them when their process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BusyError(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or folder. Yields whether there is one: not every file system has locks.

    Raises:
        BusyError: somebody else holds it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        taken = _taken(descriptor)
        try:
            if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
                raise BusyError  # it was replaced before it was locked
        except FileNotFoundError:
            raise BusyError from None
        yield taken
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BusyError from None
        return False
    return True
