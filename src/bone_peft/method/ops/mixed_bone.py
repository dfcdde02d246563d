"""Bone for a batch whose rows have blocks of their own: ``y_b + s_b D_b`` in one kernel, whatever the number of blocks.

The kernel finds the block of each row by its address, so nothing is stacked or copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from .dispatch import power_of_two, rows, use_triton
from .launch import launch
from .shared import shared_block_sum

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - PyTorch for CPUs may come without
    triton = None

_in_graphs: dict[int, Tensor] = {}
"""Tables that CUDA graphs read, which nobody may forget."""

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(y: Tensor, x: Tensor, blocks: Sequence[Tensor]) -> bool:
    """Whether :func:`add_mixed_bone` is the way to go: half precision, no gradients, blocks of one kind that last."""
    first = blocks[0]
    if torch.compiler.is_compiling() or y.dtype != x.dtype or first.dtype not in _TYPES:
        return False
    if not use_triton(x, first.shape[0]) or x.ndim < 2:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad or any(block.requires_grad for block in blocks)):
        return False
    kind = (first.shape, first.dtype, first.device)
    return first.device == x.device and all(
        (block.shape, block.dtype, block.device) == kind and isinstance(block, nn.Parameter) and block.is_contiguous()
        for block in blocks
    )


def add_mixed_bone(y: Tensor, x: Tensor, blocks: Sequence[Tensor | None]) -> Tensor:
    """``y_b + s_b D_b`` for each row ``b`` of a batch, with ``s_b`` the block sums of ``x_b``. Without gradients.

    Args:
        y: ``(batch, ..., out)``.
        x: ``(batch, ..., in)``, in the dtype of ``y``.
        blocks: ``D (r, out)`` of each row, of one dtype; ``None`` where ``y`` stays as it is.

    Returns:
        ``(batch, ..., out)``, new memory.
    """
    block = next(block for block in blocks if block is not None)
    r, features = block.shape
    table = _table(tuple(0 if block is None else block.data_ptr() for block in blocks), x.device)
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        _in_graphs[id(table)] = table
    y, batch = rows(y), len(blocks)
    tokens = len(y) // batch
    out = torch.empty_like(y, memory_format=torch.contiguous_format)
    width = power_of_two(r)
    shape = *x.shape[:-1], features
    if tokens == 1:
        flat = rows(x)
        launch(
            _mixed_token,
            (triton.cdiv(features, 64), batch),
            (table, block, flat, y, out),
            (features, flat.shape[1], flat.stride(0), y.stride(0)),
            (r, width, 64, max(1, 2048 // width)),
        )
    elif tokens:
        tile = 128 if tokens > 64 else 16 if tokens <= 16 else 64
        launch(
            _mixed_product,
            (triton.cdiv(features, 128), triton.cdiv(tokens, tile), batch),
            (table, block, shared_block_sum(x, r).contiguous(), y, out),
            (tokens, features, y.stride(0)),
            (r, width, tile, 128),
            num_warps=8,
        )
    return out.view(shape)


@lru_cache(maxsize=1 << 14)
def _table(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    """The same for all tokens, and the way to a GPU is long."""
    with torch.inference_mode(False):  # What is made there could not be used elsewhere later.
        return torch.tensor(addresses, dtype=torch.int64, device=device)


if triton is not None:

    @triton.jit
    def _block_of(table, row, block, o, c, features, R: tl.constexpr):
        """How much of a row's block there is, ``R`` or nothing, and its columns ``o``."""
        address = tl.load(table + row)
        # Nothing is read for rows without a block: their sums may be infinite.
        width = tl.where(address != 0, R, 0)
        square = (c < width)[:, None] & (o < features)[None, :]
        return width, tl.load(address.to(block.dtype) + c[:, None] * features + o[None, :], mask=square, other=0.0)

    @triton.jit
    def _mixed_token(
        table,
        block,
        x,
        y,
        out,
        features,
        features_in,
        x_stride,
        y_stride,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK_O: tl.constexpr,
        TILE: tl.constexpr,
    ):
        # One token of one row, block sum included: x is in the cache, and a launch would cost more.
        row = tl.program_id(1).to(tl.int64)
        o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
        c = tl.arange(0, WIDTH)
        width, right = _block_of(table, row, block, o, c, features, R)
        right = right.to(tl.float32)
        blocks = tl.arange(0, TILE)
        s = tl.zeros((TILE, WIDTH), dtype=tl.float32)
        for start in range(0, features_in, TILE * R):
            k = start + blocks[:, None] * R + c[None, :]
            mask = (k < features_in) & (c < width)[None, :]
            s += tl.load(x + row * x_stride + k, mask=mask, other=0.0).to(tl.float32)
        total = tl.sum(tl.sum(s, axis=0)[:, None] * right, axis=0)
        total += tl.load(y + row * y_stride + o, mask=o < features, other=0.0).to(tl.float32)
        tl.store(out + row * features + o, total.to(out.dtype.element_ty), mask=o < features)

    @triton.jit
    def _mixed_product(
        table,
        block,
        s,
        y,
        out,
        tokens,
        features,
        y_stride,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK_T: tl.constexpr,
        BLOCK_O: tl.constexpr,
    ):
        row = tl.program_id(2).to(tl.int64)
        t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
        o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
        c = tl.arange(0, WIDTH)
        width, right = _block_of(table, row, block, o, c, features, R)
        right = right.to(s.dtype.element_ty)
        place = row * tokens + t
        mask = (t < tokens)[:, None] & (c < width)[None, :]
        left = tl.load(s + place[:, None] * R + c[None, :], mask=mask, other=0.0)
        mask = (t < tokens)[:, None] & (o < features)[None, :]
        total = tl.dot(left, right)
        total += tl.load(y + place[:, None] * y_stride + o[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(out + place[:, None] * features + o[None, :], total.to(out.dtype.element_ty), mask=mask)
