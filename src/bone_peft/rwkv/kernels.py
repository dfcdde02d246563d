"""The time mixing of RWKV-7 by the Triton kernels of ``flash-linear-attention``, where a GPU and they are there."""

from __future__ import annotations

import logging
import math
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from packaging.version import Version
from torch import Tensor

from bone_peft.method.ops import dispatch

from .recurrence import CHUNK
from .recurrence import recurrence as products
from .token_shift import hides_nothing

LOWEST = -math.exp(-0.5)
"""RWKV-7's decay is ``exp(LOWEST * sigmoid(...))``: its logarithm is never below. The kernels choose larger chunks for
knowing it."""


def recurrence(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`bone_peft.rwkv.recurrence.recurrence`, by the kernels if they take it."""
    if mask is not None and hides_nothing(mask):
        mask = None
    return (kernels if takes(v) else products)(r, w, k, v, a, b, state, mask)


def takes(v: Tensor) -> bool:
    """Whether the kernels compute ``v (batch, time, heads, V)``: on a GPU, in 16 bits, for a chunk or more."""
    return v.is_cuda and v.shape[1] >= CHUNK and dispatch.kernels_allowed(v) and _installed()


def kernels(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same arguments and results; ``r``, ``k``, ``a`` and ``b`` are rounded to the dtype of ``v``."""
    from fla.ops.rwkv7 import chunk_rwkv7

    announce()
    if mask is not None:
        here = mask[..., None, None]
        w, k, b = w.where(here, 1), k.where(here, 0), b.where(here, 0)
    r, k, a, b = (x.to(v.dtype) for x in (r, k, a, b))
    with torch.autocast(v.device.type, enabled=False):
        y, state = chunk_rwkv7(
            r, w.float().log(), k, v, a, b, 1.0, initial_state=state, output_final_state=True, lower_bound=LOWEST
        )
    return (y if mask is None else y.where(here, 0)), state


@cache
def announce() -> None:
    """Say, once, what the first steps wait for."""
    logging.getLogger(__name__).warning(
        "flash-linear-attention tunes its kernels when a GPU runs them for the first time, which takes minutes; later "
        "runs find the result on the disk. BONE_PEFT_PATH=torch does without these kernels."
    )


@cache
def _installed() -> bool:
    try:
        return Version(version("fla-core")) >= Version("0.6")  # What this was written for; it knows a lower bound.
    except PackageNotFoundError:
        return False
