"""``s = sum_i x_i``, the sum of the blocks of ``x``, and its transpose, which adds ``s`` to every block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import power_of_two, use_triton
from .launch import launch

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - PyTorch for CPUs may come without
    triton = None


def block_sum(x: Tensor, r: int) -> Tensor:
    """``s = sum_i x_i``.

    Args:
        x: ``(tokens, in)`` with adjacent features. The last block is taken as zero-padded.
        r: block size.

    Returns:
        ``(tokens, r)`` in the dtype of ``x``; summed in float32.
    """
    if not use_triton(x, r):
        return block_sum_torch(x, r)
    tokens, features = x.shape
    s = torch.empty(tokens, r, dtype=x.dtype, device=x.device)
    if tokens:
        width = power_of_two(r)
        tile = max(1, 512 // width)
        launch(_block_sum, (tokens,), (x, s), (tokens, features, x.stride(0)), (r, width, 1, tile))
    return s


def block_sum_torch(x: Tensor, r: int, dtype: torch.dtype | None = None) -> Tensor:
    """The same in torch operations, on ``(..., in)``."""
    features = x.shape[-1]
    whole = features - features % r
    s = x[..., :whole].reshape(*x.shape[:-1], whole // r, r).sum(-2, dtype=dtype)
    if whole < features:
        s = s + F.pad(x[..., whole:], (0, r - (features - whole)))
    return s


def add_to_blocks(y: Tensor | None, s: Tensor, like: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y_i + s`` for every block ``i``.

    Args:
        y: ``(tokens, out)`` with adjacent features, or ``None`` for zeros.
        s: ``(tokens, r)``, contiguous.
        like: a tensor whose ``shape[-1]`` is ``out``, and whose dtype the result has.
        bias: ``(out,)``, added too.

    Returns:
        ``(tokens, out)``, new memory.
    """
    tokens, r = s.shape
    features = like.shape[-1]
    if not use_triton(like, r):
        return add_to_blocks_torch(y, s, features, like.dtype, bias)
    out = torch.empty(tokens, features, dtype=like.dtype, device=s.device)
    if tokens:
        width = power_of_two(r)
        tile = max(1, 512 // width)
        grid = (triton.cdiv(features, tile * r), triton.cdiv(tokens, 4))
        launch(
            _add_to_blocks,
            grid,
            (s if y is None else y, s, s if bias is None else bias, out),
            (tokens, features, 0 if y is None else y.stride(0)),
            (r, width, 4, tile, y is not None, bias is not None),
        )
    return out


def add_to_blocks_torch(
    y: Tensor | None, s: Tensor, features: int, dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """The same in torch operations."""
    tokens, r = s.shape
    s = s.to(dtype)
    if y is not None and bias is None and features % r == 0:
        return (y.reshape(tokens, features // r, r) + s[:, None, :]).view(tokens, features)
    tiled = s.repeat(1, -(-features // r))[:, :features]
    if bias is not None:
        tiled = tiled + bias
    return tiled.contiguous() if y is None else y + tiled


if triton is not None:

    @triton.jit
    def _block_sum(
        x,
        s,
        tokens,
        features,
        row_stride,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK_T: tl.constexpr,
        TILE: tl.constexpr,
    ):
        t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
        block = tl.arange(0, TILE)
        c = tl.arange(0, WIDTH)
        row = x + t.to(tl.int64)[:, None, None] * row_stride
        total = tl.zeros((BLOCK_T, TILE, WIDTH), dtype=tl.float32)
        for start in range(0, features, TILE * R):
            column = start + block[:, None] * R + c[None, :]
            mask = (t < tokens)[:, None, None] & ((column < features) & (c < R)[None, :])[None, :, :]
            total += tl.load(row + column[None, :, :], mask=mask, other=0.0).to(tl.float32)
        mask = (t < tokens)[:, None] & (c < R)[None, :]
        tl.store(s + t.to(tl.int64)[:, None] * R + c[None, :], tl.sum(total, axis=1).to(s.dtype.element_ty), mask=mask)

    @triton.jit
    def _add_to_blocks(
        y,
        s,
        bias,
        out,
        tokens,
        features,
        row_stride,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK_T: tl.constexpr,
        TILE: tl.constexpr,
        HAS_Y: tl.constexpr,
        HAS_BIAS: tl.constexpr,
    ):
        t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
        block = tl.arange(0, TILE)
        c = tl.arange(0, WIDTH)
        wide = t.to(tl.int64)
        part = tl.load(s + wide[:, None] * R + c[None, :], mask=(t < tokens)[:, None] & (c < R)[None, :], other=0.0)
        column = tl.program_id(0) * TILE * R + block[:, None] * R + c[None, :]
        inside = (column < features) & (c < R)[None, :]
        mask = (t < tokens)[:, None, None] & inside[None, :, :]
        total = tl.zeros((BLOCK_T, TILE, WIDTH), dtype=tl.float32) + part.to(tl.float32)[:, None, :]
        if HAS_BIAS:
            total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :, :]
        if HAS_Y:
            total += tl.load(y + wide[:, None, None] * row_stride + column[None, :, :], mask=mask, other=0.0).to(
                tl.float32
            )
        tl.store(out + wide[:, None, None] * features + column[None, :, :], total.to(out.dtype.element_ty), mask=mask)
