"""A run of several processes of which one is gone: the others do not wait for it, and say so."""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PATIENCE = 20.0
"""Seconds from SIGTERM to the end. torchrun, which Accelerate uses as well, kills 10 seconds later."""

_TRANSPORTS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def is_of_another(error: BaseException) -> bool:
    """Whether ``error`` is what this process got because another one did not answer."""
    import torch.distributed as dist

    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    return isinstance(error, kinds) or (
        isinstance(error, RuntimeError) and any(transport in str(error) for transport in _TRANSPORTS)
    )


@contextmanager
def ending(sentence: Callable[[], str]) -> Iterator[None]:
    """While several processes compute together, end this one if the launcher asks it to and another one is gone.

    What waits for another GPU hears no signal: a thread does, and ends the process with ``sentence()``.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, hears = os.pipe()
    os.set_blocking(hears, False)
    before = signal.set_wakeup_fd(hears, warn_on_full_buffer=False)
    over = threading.Event()
    listener = threading.Thread(target=_listen, args=(heard, over, sentence), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.close(hears)
        listener.join()
        os.close(heard)


def _listen(heard: int, over: threading.Event, sentence: Callable[[], str]) -> None:
    while select.select([heard], [], [])[0] and (numbers := os.read(heard, 1)):
        if numbers[0] == signal.SIGTERM and not over.wait(_PATIENCE) and _one_is_gone():
            sys.stderr.write(f"{sentence()}\n")
            sys.stderr.flush()
            os._exit(128 + signal.SIGTERM)


def _one_is_gone() -> bool:
    """Whether the launcher has fewer processes here than it started. A long step alone is no reason to end."""
    import psutil

    living = [p for p in psutil.Process(os.getppid()).children() if p.status() != psutil.STATUS_ZOMBIE]
    return len(living) < int(os.environ["LOCAL_WORLD_SIZE"])
