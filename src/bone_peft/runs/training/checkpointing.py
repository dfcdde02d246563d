"""Whether what backward needs fits into memory, by measuring it, or is computed again (gradient checkpointing)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_MEASURED = 256
"""Tokens of the longest row that is tried."""


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
