"""Whether what backward needs fits into memory, by measuring it, or is computed again (gradient checkpointing)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MEASURED = 256
"""Tokens of the longest row that is tried."""

_SHARE = 0.85
"""Of the free memory that a step may take: the rest is for what nobody can foresee."""


def needed(model: Any, row: list[int], lengths: list[int]) -> int:
    """Bytes that a step over rows of these lengths keeps for backward, logits not counted.

    Args:
        row: tokens of a row; three beginnings of it are measured.
    """
    longest = min(_MEASURED, len(row))
    points = sorted({max(1, longest // 4), max(1, longest // 2), longest})
    device = model.get_input_embeddings().weight.device
    trained = model.training
    model.eval()
    try:
        kept = [saved_bytes(model, {"input_ids": torch.tensor([row[:n]], device=device)}) for n in points]
    finally:
        model.train(trained)
    # Bytes are a square of the length, where attention has no kernel of its own, and the weights' part is there once.
    curve = np.polynomial.Polynomial.fit(points, kept, deg=len(points) - 1)
    once = float(curve(0))
    return int(once + sum(float(curve(length)) - once for length in lengths))


def saved_bytes(model: Any, batch: dict[str, Any]) -> int:
    """Bytes that a forward pass over ``batch`` keeps for backward, weights not counted."""
    kept: dict[int, int] = {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        # Kept alive, so that no two have one address; and without its history, which holds what is kept here.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.enable_grad():
        outputs = model(**batch)
    del outputs
    return sum(kept.values())


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process may still take; None if nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
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


def fits(needed: int, device: torch.device) -> bool:
    """Whether a step that keeps ``needed`` bytes for backward fits. Unknown memory is no reason to compute twice."""
    free = free_bytes(device)
    return free is None or needed <= _SHARE * free
