"""Bone for a single token: ``W x + b + D^T s`` in one kernel, block sum included. Bound by reading ``W``."""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import power_of_two, use_triton
from .launch import launch
from .operator import operator

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - PyTorch for CPUs may come without
    triton = None


def takes(x: Tensor, weight: Tensor, r: int) -> bool:
    """Whether :func:`linear_bone_token` is the way to go: one token, kernels at hand, adjacent features."""
    return x.numel() == x.shape[-1] and use_triton(x, r) and weight.stride(1) == 1


@operator("linear_bone_token(Tensor x, Tensor weight, Tensor? bias, Tensor block) -> Tensor")
def linear_bone_token(x: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    """``W x + b + D^T s`` without gradients.

    Args:
        x: ``(..., in)``, a single token.
        weight, bias: ``W (out, in)`` and ``b (out,)`` or ``None``, in the dtype of ``x``.
        block: ``D (r, out)``, of any dtype.

    Returns:
        ``(..., out)`` in the dtype of ``x``.
    """
    features_out, features_in = weight.shape
    r = block.shape[0]
    y = torch.empty(*x.shape[:-1], features_out, dtype=x.dtype, device=x.device)
    width = power_of_two(r)
    rows = 8
    launch(
        _bone_token,
        (triton.cdiv(features_out, rows),),
        (x.contiguous(), weight, y if bias is None else bias, block.contiguous(), y),
        (features_in, features_out, weight.stride(0)),
        (r, width, rows, 512, max(1, 1024 // width), bias is not None),
    )
    return y


@linear_bone_token.fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


if triton is not None:

    @triton.jit
    def _bone_token(
        x,
        weight,
        bias,
        block,
        y,
        features_in,
        features_out,
        w_stride,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        ROWS: tl.constexpr,
        STEP: tl.constexpr,
        TILE: tl.constexpr,
        HAS_BIAS: tl.constexpr,
    ):
        o = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        inside = o < features_out
        c = tl.arange(0, WIDTH)
        d = tl.load(block + c[:, None] * features_out + o[None, :], mask=(c < R)[:, None] & inside[None, :], other=0.0)
        row = weight + o.to(tl.int64)[:, None] * w_stride
        total = tl.zeros((ROWS, STEP), dtype=tl.float32)
        for start in range(0, features_in, STEP):
            k = start + tl.arange(0, STEP)
            w = tl.load(row + k[None, :], mask=inside[:, None] & (k < features_in)[None, :], other=0.0)
            part = tl.load(x + k, mask=k < features_in, other=0.0)
            total += w.to(tl.float32) * part.to(tl.float32)[None, :]
        blocks = tl.arange(0, TILE)
        s = tl.zeros((TILE, WIDTH), dtype=tl.float32)
        for start in range(0, features_in, TILE * R):
            k = start + blocks[:, None] * R + c[None, :]
            s += tl.load(x + k, mask=(k < features_in) & (c < R)[None, :], other=0.0).to(tl.float32)
        result = tl.sum(total, axis=1) + tl.sum(tl.sum(s, axis=0)[:, None] * d, axis=0)
        if HAS_BIAS:
            result += tl.load(bias + o, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + o, result.to(y.dtype.element_ty), mask=inside)
