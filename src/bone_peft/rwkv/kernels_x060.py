"""The time mixing of RWKV-6 by the Triton kernels of ``flash-linear-attention``, where a GPU and they are there."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import announce, takes
from .recurrence_x060 import recurrence as products
from .token_shift import hides_nothing

LOWEST = -20.0
"""Of a decay's logarithm: the kernels add these up over a chunk and take differences, in which one that forgets all at
once would be so large that others are lost. What is left of a channel then is 2e-9, as good as nothing."""


def recurrence(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`bone_peft.rwkv.recurrence_x060.recurrence`, by the kernels if they take it."""
    if mask is not None and hides_nothing(mask):
        mask = None
    return (kernels if takes(v) else products)(r, w, k, v, u, state, mask)


def kernels(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same arguments and results; ``r``, ``k`` and ``u`` are rounded to the dtype of ``v``."""
    from fla.ops.rwkv6 import chunk_rwkv6

    announce()
    if mask is not None:
        here = mask[..., None, None]
        w, k = w.where(here, 0), k.where(here, 0)
    r, k, u = (x.to(v.dtype) for x in (r, k, u))
    with torch.autocast(v.device.type, enabled=False):
        w = w.float().clamp(min=LOWEST)
        y, state = chunk_rwkv6(r, k, v, w, u, 1.0, initial_state=state, output_final_state=True)
    return (y if mask is None else y.where(here, 0)), state
