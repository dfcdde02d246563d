"""A process of its own for what may crash, hang or eat memory."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

MEMORY = 8 * 2**30
_FORK = multiprocessing.get_context("fork")


def isolated(work: Callable[[], Iterator[Any]], seconds: float) -> tuple[list[Any], str | None]:
    """What ``work()`` yields in a forked process, and, if it did not come to its end, why."""
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_work, args=(work, sender))
    process.start()
    sender.close()
    end, found, why = time.monotonic() + seconds, [], None
    try:
        while why is None:
            if receiver.poll(max(0.0, end - time.monotonic())):
                found.append(receiver.recv())
            else:
                why = f"it took more than {seconds:g} seconds"
                process.kill()
    except EOFError:
        pass
    process.join()
    if why is None and process.exitcode:
        why = f"its process ended with {process.exitcode}"
    return found, why


def _work(work: Callable[[], Iterator[Any]], sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for found in work():
        sender.send(found)
