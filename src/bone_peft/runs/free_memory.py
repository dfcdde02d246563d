"""Memory that a process may still take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from bone_peft.errors import BoneError

_SHARE = 0.85
"""Of the free memory that may be taken: the rest is for what nobody can foresee."""

_share: ContextVar[int | None] = ContextVar("share", default=None)


class NoRoomError(BoneError):
    """What there is too little of is memory, which may be free another time."""


def fits(needed: int, device: torch.device) -> bool:
    """Whether there is room for ``needed`` bytes. Unknown memory is no reason to do without."""
    free = free_bytes(device)
    return free is None or needed <= _SHARE * free


@contextmanager
def taking(share: int | None) -> Iterator[None]:
    """Inside, this process goes by a GPU of ``share`` bytes, others having theirs; None takes all that is free."""
    before = _share.set(share)
    try:
        yield
    finally:
        _share.reset(before)


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process may still take; None if nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        taken, share = torch.cuda.memory_allocated(device), _share.get()
        left = int(free) + torch.cuda.memory_reserved(device) - taken
        return left if share is None else max(0, min(left, share - taken))
    if device.type == "cpu":
        return min(filter(None, (_of_the_machine(), _of_the_container())), default=None)
    return None


def _of_the_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _of_the_container() -> int | None:
    """What is left of the limit of a control group, if there is one."""
    group = Path("/sys/fs/cgroup")
    try:
        most, now = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return max(1, int(most) - int(now)) if most.isdigit() and now.isdigit() else None
