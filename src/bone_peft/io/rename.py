"""Putting a finished file or folder into its place in one step, over nothing or in exchange for what is there."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

from .locks import BusyError, locked

_NO_REPLACE, _EXCHANGE = 1, 2  # linux/fs.h
_HERE = -100  # AT_FDCWD: paths are as for any other call


def put(staging: Path, target: Path) -> None:
    """Rename ``staging`` to ``target``.

    Raises:
        FileExistsError: something is at ``target``. An empty folder is something, too.
    """
    if _renameat2(staging, target, _NO_REPLACE):
        return
    if not staging.is_dir() and _linked(staging, target):
        staging.unlink()
        return
    # The name is taken first, by something empty, and only that is replaced. What a kill leaves says so.
    taking = aside(target, "taking")
    staging.rename(taking)
    try:
        if taking.is_dir():
            target.mkdir()
        else:
            target.touch(exist_ok=False)
    except BaseException:
        taking.rename(staging)
        raise
    taking.replace(target)


def exchange(staging: Path, target: Path) -> None:
    """Let ``staging`` and ``target`` swap names; both are files, or both are folders.

    Where the system has no such call, a kill between two renames leaves the old one as ``.NAME.*.old``, which
    :func:`~bone_peft.io.leftovers.clear` puts back.
    """
    if _renameat2(staging, target, _EXCHANGE):
        return
    old = aside(target, "old")
    with ExitStack() as held:
        with suppress(BusyError):  # who holds it is this very process
            held.enter_context(locked(target))
        target.rename(old)
        try:
            staging.rename(target)
        except BaseException:
            old.rename(target)
            raise
        old.rename(staging)


def aside(target: Path, ending: str) -> Path:
    """A free name beside ``target`` that says whose it is."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.{ending}")


def _linked(staging: Path, target: Path) -> bool:
    try:
        target.hardlink_to(staging)
    except FileExistsError:
        raise
    except OSError:  # not every file system has links
        return False
    return True


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Whether the system and the file system know this call; the C library of Linux has it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(target))
