"""A model outlined as a stranger's config asks, within limits: of parts, of time and of memory."""

from __future__ import annotations

import ctypes
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from bone_peft.errors import BoneError

T = TypeVar("T")

PARTS = 100_000
"""Modules and parameters that a model may have. The largest of Transformers have some 8,000."""

SECONDS = 3
"""Of the processor, so that a busy machine is no reason. The largest take a third of one."""

BYTES = 2**30


def bounded(work: Callable[[], T], where: Path | str, parts: int = PARTS, seconds: float | None = None) -> T:
    """What ``work`` returns, or a BoneError as soon as it does too much.

    Args:
        work: builds a config or a model. It runs in a thread of its own, as a thread can be stopped from outside.
        where: the config is, to be named in errors.
        parts: modules and parameters that it may give to modules.
        seconds: of the processor, if it may take longer than others.

    Raises:
        BoneError: it was stopped. What it raises itself comes through.
    """
    seconds = seconds or SECONDS
    result: Future[T] = Future()

    def run() -> None:
        try:
            with _counted(parts, where):
                result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    worker = threading.Thread(target=run, daemon=True)
    most = _peak() + BYTES
    worker.start()
    try:
        while worker.is_alive():
            if _worked(worker) > seconds:
                raise _too_much(where, f"{seconds} seconds of work")
            if _peak() > most:
                raise _too_much(where, f"{BYTES >> 20} MiB of memory")
            worker.join(0.01)
    finally:
        if worker.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident or 0), ctypes.py_object(SystemExit))
            worker.join(SECONDS)
    return result.result()


def clamped(settings: Any, most: int) -> Any:
    """``settings`` with no whole number above ``most``, so that nothing that is counted by one is longer."""
    if isinstance(settings, dict):
        return {name: clamped(value, most) for name, value in settings.items()}
    if isinstance(settings, list):
        return [clamped(value, most) for value in settings]
    return min(settings, most) if isinstance(settings, int) else settings


@contextmanager
def _counted(limit: int, where: Path | str) -> Iterator[None]:
    """Raise a BoneError when this thread gives modules more than ``limit`` modules and parameters."""
    here, count = threading.get_ident(), 0

    def counts(*_: Any) -> None:
        nonlocal count
        count += threading.get_ident() == here
        if count > limit:
            raise _too_much(where, f"{limit:,} modules and parameters")

    hooks = [register_module_module_registration_hook(counts), register_module_parameter_registration_hook(counts)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _too_much(where: Path | str, what: str) -> BoneError:
    return BoneError(f"{where} asks for a model of more than {what}, which this one cannot have: take another copy.")


def _worked(worker: threading.Thread) -> float:
    """Seconds of the processor that it took, and no other thread."""
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(worker.ident or 0))
    except OSError:  # it has ended
        return 0


def _peak() -> int:
    """Most memory that this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
