"""Bone where each row has the block of the expert that it was sent to: ``y + s D_e``, and back.

The sum ``s`` is of tokens; rows read it from there. ``D`` is rounded on the way, and its gradient is summed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .dispatch import power_of_two, rows, use_triton
from .expert_tiles import most_tiles
from .launch import launch
from .operator import operator

try:
    import triton
    import triton.language as tl

    from .expert_tiles import rows_of_expert, rows_of_tile
except ImportError:  # pragma: no cover - PyTorch for CPUs may come without
    triton = None

_ROWS, _COLUMNS = 64, 128


def add_grouped_bone(y: Tensor, s: Tensor, handle: Tensor, block: Tensor, ends: Tensor, tokens: Tensor) -> Tensor:
    """``y_t + s D_e`` for each row ``t`` of expert ``e``. For what :func:`takes` takes.

    Args:
        y: ``(rows, out)``.
        s, handle: ``(tokens, r)``, block sums and what takes their gradient, as from :func:`.shared.with_block_sum`.
        block: ``D (experts, r, out)``, of any dtype; its gradient has the same.
        ends: ``(experts,)``, where the rows of each end.
        tokens: ``(rows,)``, which of ``s`` each row reads.

    Returns:
        ``(rows, out)`` in the dtype of ``y``.
    """
    return _AddGroupedBone.apply(y, s, handle, block, ends, tokens)


def takes(x: Tensor, r: int) -> bool:
    """Whether the kernels take rows of ``x`` with blocks of ``r``. Wider ones leave them too few registers."""
    return use_triton(x, r) and r <= 128


@operator("add_grouped_bone(Tensor y, Tensor s, Tensor block, Tensor ends, Tensor tokens) -> Tensor")
def _forward(y: Tensor, s: Tensor, block: Tensor, ends: Tensor, tokens: Tensor) -> Tensor:
    experts, r, features = block.shape
    y, out = rows(y), y.new_empty(y.shape)
    if len(y):
        launch(
            _add_grouped_bone,
            (triton.cdiv(features, _COLUMNS), most_tiles(len(y), experts, _ROWS)),
            (y, s.contiguous(), block.contiguous(), ends.contiguous(), tokens.contiguous(), out),
            (features, y.stride(0)),
            (experts, power_of_two(experts), r, power_of_two(r), _ROWS, _COLUMNS),
        )
    return out


@_forward.fake
def _(y: Tensor, s: Tensor, block: Tensor, ends: Tensor, tokens: Tensor) -> Tensor:
    return y.new_empty(y.shape)


@operator(
    "grouped_bone_backward(Tensor dy, Tensor? s, Tensor block, Tensor ends, Tensor tokens, int number, bool needs_s)"
    " -> (Tensor, Tensor)"
)
def _backward(
    dy: Tensor, s: Tensor | None, block: Tensor, ends: Tensor, tokens: Tensor, number: int, needs_s: bool
) -> tuple[Tensor | None, Tensor | None]:
    """``ds (number of tokens, r)`` in float32, if it is wanted, and ``dD``, if ``s`` is given."""
    experts, r, features = block.shape
    dy, block, ends, tokens = rows(dy), block.contiguous(), ends.contiguous(), tokens.contiguous()
    ds = torch.zeros(number, r, dtype=torch.float32, device=dy.device) if needs_s else None
    if ds is not None and len(dy):
        launch(
            _grouped_bone_ds,
            (most_tiles(len(dy), experts, _ROWS),),
            (dy, block, ends, tokens, ds),
            (features, dy.stride(0)),
            (experts, power_of_two(experts), r, power_of_two(r), _ROWS, 64, 3 if r <= 64 else 1),
        )
    if s is None:
        return ds, None
    dblock = torch.empty_like(block)
    launch(
        _grouped_bone_dblock,
        (triton.cdiv(features, _COLUMNS), experts),
        (dy, s.contiguous(), ends, tokens, dblock),
        (features, dy.stride(0)),
        (r, power_of_two(r), _ROWS, _COLUMNS, 3 if r <= 64 else 1),
    )
    return ds, dblock


@_backward.fake
def _(
    dy: Tensor, s: Tensor | None, block: Tensor, ends: Tensor, tokens: Tensor, number: int, needs_s: bool
) -> tuple[Tensor | None, Tensor | None]:
    ds = dy.new_empty(number, block.shape[1], dtype=torch.float32) if needs_s else None
    return ds, None if s is None else block.new_empty(block.shape)


class _AddGroupedBone(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, s: Tensor, handle: Tensor, block: Tensor, ends: Tensor, tokens: Tensor) -> Tensor:
        ctx.number = len(s)
        ctx.save_for_backward(s if ctx.needs_input_grad[3] else None, block, ends, tokens)
        return _forward(y, s, block, ends, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        ds, dblock = _backward(dy, *ctx.saved_tensors, ctx.number, needs[2])
        return dy, None, ds if needs[2] else None, dblock if needs[3] else None, None, None


if triton is not None:

    @triton.jit
    def _add_grouped_bone(
        y,
        s,
        block,
        ends,
        tokens,
        out,
        features,
        y_stride,
        EXPERTS: tl.constexpr,
        EXPERTS_WIDE: tl.constexpr,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        TILE: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        expert, start, stop = rows_of_tile(ends, tl.program_id(1), EXPERTS, EXPERTS_WIDE, TILE)
        if expert < EXPERTS:
            t = start + tl.arange(0, TILE)
            c = tl.arange(0, WIDTH)
            o = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
            dtype = out.dtype.element_ty
            token = tl.load(tokens + t, mask=t < stop, other=0).to(tl.int64)[:, None]
            left = tl.load(s + token * R + c[None, :], mask=(t < stop)[:, None] & (c < R)[None, :], other=0.0)
            place = (expert.to(tl.int64) * R + c[:, None]) * features + o[None, :]
            right = tl.load(block + place, mask=(c < R)[:, None] & (o < features)[None, :], other=0.0)
            wide = t.to(tl.int64)[:, None]
            mask = (t < stop)[:, None] & (o < features)[None, :]
            total = tl.load(y + wide * y_stride + o[None, :], mask=mask, other=0.0).to(tl.float32)
            total += tl.dot(left, right.to(dtype))
            tl.store(out + wide * features + o[None, :], total.to(dtype), mask=mask)

    @triton.jit
    def _grouped_bone_ds(
        dy,
        block,
        ends,
        tokens,
        ds,
        features,
        dy_stride,
        EXPERTS: tl.constexpr,
        EXPERTS_WIDE: tl.constexpr,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        TILE: tl.constexpr,
        STEP: tl.constexpr,
        STAGES: tl.constexpr,
    ):
        expert, start, stop = rows_of_tile(ends, tl.program_id(0), EXPERTS, EXPERTS_WIDE, TILE)
        if expert < EXPERTS:
            t = start + tl.arange(0, TILE)
            c = tl.arange(0, WIDTH)
            row = dy + t.to(tl.int64)[:, None] * dy_stride
            own = block + (expert.to(tl.int64) * R + c[:, None]) * features
            total = tl.zeros((TILE, WIDTH), dtype=tl.float32)
            for first in tl.range(0, features, STEP, num_stages=STAGES):
                o = first + tl.arange(0, STEP)
                piece = tl.load(row + o[None, :], mask=(t < stop)[:, None] & (o < features)[None, :], other=0.0)
                right = tl.load(own + o[None, :], mask=(c < R)[:, None] & (o < features)[None, :], other=0.0)
                total += tl.dot(piece, tl.trans(right.to(piece.dtype)))
            token = tl.load(tokens + t, mask=t < stop, other=0).to(tl.int64)[:, None]
            mask = (t < stop)[:, None] & (c < R)[None, :]
            tl.atomic_add(ds + token * R + c[None, :], total, mask=mask, sem="relaxed")

    @triton.jit
    def _grouped_bone_dblock(
        dy,
        s,
        ends,
        tokens,
        dblock,
        features,
        dy_stride,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        STEP: tl.constexpr,
        COLUMNS: tl.constexpr,
        STAGES: tl.constexpr,
    ):
        # A part of one expert's block, over all its rows.
        expert = tl.program_id(1)
        start, stop = rows_of_expert(ends, expert)
        c = tl.arange(0, WIDTH)
        o = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros((WIDTH, COLUMNS), dtype=tl.float32)
        for first in tl.range(start, stop, STEP, num_stages=STAGES):
            t = first + tl.arange(0, STEP)
            token = tl.load(tokens + t, mask=t < stop, other=0).to(tl.int64)[:, None]
            left = tl.load(s + token * R + c[None, :], mask=(t < stop)[:, None] & (c < R)[None, :], other=0.0)
            piece = tl.load(
                dy + t.to(tl.int64)[:, None] * dy_stride + o[None, :],
                mask=(t < stop)[:, None] & (o < features)[None, :],
                other=0.0,
            )
            total += tl.dot(tl.trans(left), piece)
        place = (expert.to(tl.int64) * R + c[:, None]) * features + o[None, :]
        mask = (c < R)[:, None] & (o < features)[None, :]
        tl.store(dblock + place, total.to(dblock.dtype.element_ty), mask=mask)
