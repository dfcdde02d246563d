"""Input-shared Bat where each row has the blocks of the expert that it was sent to: ``z`` and ``v``, and back.

As :mod:`.bat_input_kernels`, and as in :mod:`.grouped` rows lie in the order of their experts. The rows are read from
their tokens: they are not laid out before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .bat_input_kernels import kernel_takes
from .dispatch import power_of_two, rows
from .expert_tiles import most_tiles
from .launch import launch
from .operator import operator
from .spans import spans
from .token_sums import token_sums

try:
    import triton
    import triton.language as tl

    from .expert_tiles import rows_of_expert, rows_of_tile
except ImportError:  # pragma: no cover - PyTorch for CPUs may come without
    triton = None

_ROWS = 64


def grouped_bat_input(
    x: Tensor, block: Tensor, ends: Tensor, tokens: Tensor | None, places: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``z = x + u`` and ``v = sum_i u_i`` with ``u_i = D_ei x_i`` for each row of expert ``e``.

    Args:
        x: ``(tokens, n * r)``, or ``(rows, n * r)`` if ``tokens`` is None.
        block: ``D (experts, n, r, r)``, of any dtype; its gradient has the same.
        ends: ``(experts,)``.
        tokens: ``(rows,)``, the token of each row.
        places: ``(tokens, k)``, the rows of each token.

    Returns:
        ``z (rows, n * r)`` and ``v (rows, r)`` in the dtype of ``x``.
    """
    return _GroupedBatInput.apply(x, block, ends, tokens, places)


@operator("grouped_bat_input(Tensor x, Tensor block, Tensor ends, Tensor? tokens) -> (Tensor, Tensor)")
def _forward(x: Tensor, block: Tensor, ends: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    experts, n, r, _ = block.shape
    x, block, ends = rows(x), block.contiguous(), ends.contiguous()
    tokens = None if tokens is None else tokens.contiguous()
    number = len(x) if tokens is None else len(tokens)
    z, v = x.new_empty(number, n * r), x.new_empty(number, r)
    if not number:
        return z, v
    if kernel_takes(x, r):
        launch(
            _transform_rows,
            (most_tiles(number, experts, _ROWS),),
            (x, ends if tokens is None else tokens, ends, block, z, v),
            (n, x.stride(0)),
            (experts, power_of_two(experts), r, power_of_two(r), _ROWS, tokens is not None, 3 if r <= 64 else 1),
        )
        return z, v
    block = block.to(x.dtype)
    for expert, span in spans(ends):
        own = x[span] if tokens is None else x[tokens[span]]
        u = torch.bmm(own.view(-1, n, r).transpose(0, 1), block[expert].mT)
        z[span] = own + u.transpose(0, 1).reshape(own.shape)
        v[span] = u.sum(0)
    return z, v


@_forward.fake
def _(x: Tensor, block: Tensor, ends: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    number, (n, r) = len(x) if tokens is None else len(tokens), block.shape[1:3]
    return x.new_empty(number, n * r), x.new_empty(number, r)


@operator(
    "grouped_bat_input_backward(Tensor dz, Tensor dv, Tensor? x, Tensor block, Tensor ends, Tensor? tokens, "
    "bool needs_x) -> (Tensor, Tensor)"
)
def _backward(
    dz: Tensor, dv: Tensor, x: Tensor | None, block: Tensor, ends: Tensor, tokens: Tensor | None, needs_x: bool
) -> tuple[Tensor | None, Tensor | None]:
    """``dx (rows, n * r)``, if it is wanted, and ``dD``, if ``x`` is given."""
    experts, n, r, _ = block.shape
    dz, dv, block, ends = dz.contiguous(), dv.contiguous(), block.contiguous(), ends.contiguous()
    tokens = None if tokens is None else tokens.contiguous()
    dx = torch.empty_like(dz) if needs_x else None
    if len(dz) and kernel_takes(dz, r):
        x = None if x is None else rows(x)
        dblock = None if x is None else torch.empty_like(block)
        launch(
            _transform_rows_backward,
            (n, experts),
            (
                dz,
                dv,
                dz if x is None else x,
                ends if tokens is None else tokens,
                ends,
                block,
                dz if dx is None else dx,
                block if dblock is None else dblock,
            ),
            (n, 0 if x is None else x.stride(0)),
            (r, power_of_two(r), _ROWS, tokens is not None, dx is not None, dblock is not None, 2),
            num_warps=4 if r <= 64 else 8,
        )
        return dx, dblock
    dblock = None if x is None else torch.zeros_like(block)
    for expert, span in spans(ends):
        blocks = dz[span].view(-1, n, r).transpose(0, 1)
        du = blocks + dv[span]
        if dx is not None:
            dx[span] = (blocks + torch.bmm(du, block[expert].to(dz.dtype))).transpose(0, 1).reshape(-1, n * r)
        if x is not None and dblock is not None:
            own = x[span] if tokens is None else x[tokens[span]]
            dblock[expert] = torch.bmm(du.mT, own.view(-1, n, r).transpose(0, 1))
    return dx, dblock


@_backward.fake
def _(
    dz: Tensor, dv: Tensor, x: Tensor | None, block: Tensor, ends: Tensor, tokens: Tensor | None, needs_x: bool
) -> tuple[Tensor | None, Tensor | None]:
    return dz.new_empty(dz.shape) if needs_x else None, None if x is None else block.new_empty(block.shape)


class _GroupedBatInput(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: Tensor, ends: Tensor, tokens: Tensor | None, places: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, block, ends, tokens, places)
        return _forward(x, block, ends, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        x, block, ends, tokens, places = ctx.saved_tensors
        dx, dblock = _backward(dz, dv, x, block, ends, tokens, ctx.needs_input_grad[0])
        if not ctx.needs_input_grad[0]:
            dx = None
        elif places is not None:
            dx = token_sums(dx, places)
        return dx, dblock if ctx.needs_input_grad[1] else None, None, None, None


if triton is not None:

    @triton.jit
    def _transform_rows(
        x,
        tokens,
        ends,
        block,
        z,
        v,
        number,
        x_stride,
        EXPERTS: tl.constexpr,
        EXPERTS_WIDE: tl.constexpr,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK_T: tl.constexpr,
        GATHER: tl.constexpr,
        STAGES: tl.constexpr,
    ):
        expert, start, stop = rows_of_tile(ends, tl.program_id(0), EXPERTS, EXPERTS_WIDE, BLOCK_T)
        if expert < EXPERTS:
            t = start + tl.arange(0, BLOCK_T)
            c = tl.arange(0, WIDTH)
            wide = t.to(tl.int64)[:, None]
            source = wide
            if GATHER:
                source = tl.load(tokens + t, mask=t < stop, other=0).to(tl.int64)[:, None]
            mask = (t < stop)[:, None] & (c < R)[None, :]
            square = (c < R)[:, None] & (c < R)[None, :]
            dtype = x.dtype.element_ty
            own = block + expert.to(tl.int64) * number * R * R
            total = tl.zeros((BLOCK_T, WIDTH), dtype=tl.float32)
            for i in tl.range(0, number, num_stages=STAGES):
                piece = tl.load(x + source * x_stride + i * R + c[None, :], mask=mask, other=0.0)
                # D_i (a, d), read as (d, a).
                d = tl.load(own + i * R * R + c[None, :] * R + c[:, None], mask=square, other=0.0)
                u = tl.dot(piece, d.to(dtype))
                total += u
                new = piece.to(tl.float32) + u
                tl.store(z + wide * (number * R) + i * R + c[None, :], new.to(dtype), mask=mask)
            tl.store(v + wide * R + c[None, :], total.to(dtype), mask=mask)

    @triton.jit
    def _transform_rows_backward(
        dz,
        dv,
        x,
        tokens,
        ends,
        block,
        dx,
        dblock,
        number,
        x_stride,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        STEP: tl.constexpr,
        GATHER: tl.constexpr,
        NEEDS_X: tl.constexpr,
        NEEDS_BLOCK: tl.constexpr,
        STAGES: tl.constexpr,
    ):
        # One block of one expert, over all its rows.
        i = tl.program_id(0)
        expert = tl.program_id(1)
        start, stop = rows_of_expert(ends, expert)
        c = tl.arange(0, WIDTH)
        dtype = dz.dtype.element_ty
        square = (c < R)[:, None] & (c < R)[None, :]
        own = (expert.to(tl.int64) * number + i) * R * R + c[:, None] * R + c[None, :]
        d = tl.load(block + own, mask=square, other=0.0).to(dtype)
        total = tl.zeros((WIDTH, WIDTH), dtype=tl.float32)
        for first in tl.range(start, stop, STEP, num_stages=STAGES):
            t = first + tl.arange(0, STEP)
            wide = t.to(tl.int64)[:, None]
            mask = (t < stop)[:, None] & (c < R)[None, :]
            place = wide * (number * R) + i * R + c[None, :]
            piece = tl.load(dz + place, mask=mask, other=0.0).to(tl.float32)
            du = (piece + tl.load(dv + wide * R + c[None, :], mask=mask, other=0.0).to(tl.float32)).to(dtype)
            if NEEDS_X:
                back = piece + tl.dot(du, d)
                tl.store(dx + place, back.to(dtype), mask=mask)
            if NEEDS_BLOCK:
                source = wide
                if GATHER:
                    source = tl.load(tokens + t, mask=t < stop, other=0).to(tl.int64)[:, None]
                own_x = tl.load(x + source * x_stride + i * R + c[None, :], mask=mask, other=0.0)
                total += tl.dot(tl.trans(du), own_x)
        if NEEDS_BLOCK:
            tl.store(dblock + own, total.to(dblock.dtype.element_ty), mask=square)
