"""Input-shared Bat: ``z = x + u`` and ``v = sum_i u_i`` with ``u_i = D_i x_i``, and ``y = W z + b + tile(v)``.

The weight is a black box. ``z`` and ``v`` come from one pass over ``x``; backward is one pass over ``x`` and the
gradient of ``z``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import twice
from .base_layer import BaseLayer
from .bat_input_kernels import transform, transform_backward
from .block_sum import add_to_blocks, block_sum, block_sum_torch
from .dispatch import computing_dtype, rows, shaped
from .operator import operator


def bat_input_layer(x: Tensor, block: Tensor, below: BaseLayer) -> Tensor:
    """The output ``(..., out)`` of a layer with input-shared Bat, for ``x (..., in)`` and ``D (in/r, r, r)``."""
    block = block.contiguous()
    linear = below.linear(x)
    if linear is not None:
        return linear_bat_input(x, *linear, block)
    z, v = bat_input(x.to(computing_dtype(x)), block)
    return add_tiled(below.output(z), v)


def linear_bat_input(x: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    """``W (x + u) + b + tile(v)`` for a plain linear layer.

    Args:
        x: ``(..., in)``.
        weight, bias: ``W (out, in)`` and ``b (out,)`` or ``None``, in the dtype of ``x``; they get no gradient.
        block: ``D (in/r, r, r)``, of any dtype; its gradient has the same.

    Returns:
        ``(..., out)``.
    """
    return _LinearBatInput.apply(x, weight, bias, block)


def bat_input(x: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """``z (..., in)`` and ``v (tokens, r)`` in the dtype of ``x``, for a base layer that is a black box."""
    return _BatInput.apply(x, block)


def add_tiled(y: Tensor, v: Tensor) -> Tensor:
    """``y (..., out)`` plus ``v (tokens, r)`` in each of its blocks."""
    if torch.compiler.is_compiling():
        tiled = y.reshape(v.shape[0], y.shape[-1] // v.shape[1], v.shape[1]) + v[:, None, :]
        return tiled.to(y.dtype).view(y.shape)
    return _AddTiled.apply(y, v)


@operator("linear_bat_input(Tensor x, Tensor weight, Tensor? bias, Tensor block) -> Tensor")
def _linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    z, v = transform(rows(x), block.contiguous())
    y = add_to_blocks(None, v, weight.T, bias).addmm_(z, weight.T)
    return shaped(y, *x.shape[:-1], y.shape[-1])


@_linear_forward.fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@operator(
    "linear_bat_input_backward(Tensor dy, Tensor? x, Tensor weight, Tensor block, bool needs_x) -> (Tensor, Tensor)"
)
def _linear_backward(
    dy: Tensor, x: Tensor | None, weight: Tensor, block: Tensor, needs_x: bool
) -> tuple[Tensor | None, Tensor | None]:
    """``dx``, if it is wanted, and ``dD``, if ``x`` is given."""
    flat = rows(dy)
    dv = block_sum(flat, block.shape[-1])
    dx, dblock = transform_backward(flat @ weight, dv, None if x is None else rows(x), block.contiguous(), needs_x)
    return None if dx is None else dx.view(*dy.shape[:-1], weight.shape[1]), dblock


@_linear_backward.fake
def _(
    dy: Tensor, x: Tensor | None, weight: Tensor, block: Tensor, needs_x: bool
) -> tuple[Tensor | None, Tensor | None]:
    dx = dy.new_empty(*dy.shape[:-1], weight.shape[1]) if needs_x else None
    return dx, None if x is None else block.new_empty(block.shape)


def _definition(x: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    block = block.to(x.dtype)
    number, r, _ = block.shape
    u = torch.einsum("nid,iad->nia", x.reshape(-1, number, r), block)
    return x + u.reshape(x.shape), u.sum(1)


def _linear_definition(weight: Tensor, x: Tensor, block: Tensor) -> Tensor:
    """Without the bias, which has no gradient."""
    z, v = _definition(x, block)
    y = rows(z) @ weight.T
    return (y.reshape(len(v), -1, v.shape[1]) + v[:, None, :]).reshape(*x.shape[:-1], weight.shape[0])


class _LinearBatInput(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, block)
        return _linear_forward(x, weight, bias, block)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, block = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if twice.is_asked_for():
            x = dy.new_zeros(*dy.shape[:-1], weight.shape[1], requires_grad=True) if x is None else x
            dx, dblock = twice.gradients(partial(_linear_definition, weight), (x, block), (needs[0], needs[3]), dy)
            return dx, None, None, dblock
        dx, dblock = _linear_backward(dy, x, weight, block, needs[0])
        return dx if needs[0] else None, None, None, dblock if needs[3] else None


@operator("bat_input(Tensor x, Tensor block) -> (Tensor, Tensor)")
def _forward(x: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    z, v = transform(rows(x), block.contiguous())
    return shaped(z, *x.shape), v.to(x.dtype)


@_forward.fake
def _(x: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.numel() // x.shape[-1], block.shape[-1])


@operator("bat_input_backward(Tensor dz, Tensor dv, Tensor? x, Tensor block, bool needs_x) -> (Tensor, Tensor)")
def _backward(
    dz: Tensor, dv: Tensor, x: Tensor | None, block: Tensor, needs_x: bool
) -> tuple[Tensor | None, Tensor | None]:
    """As above, with the gradient of ``z`` at hand."""
    flat = None if x is None else rows(x)
    dx, dblock = transform_backward(rows(dz), dv.contiguous(), flat, block.contiguous(), needs_x)
    return None if dx is None else dx.view(dz.shape), dblock


@_backward.fake
def _(dz: Tensor, dv: Tensor, x: Tensor | None, block: Tensor, needs_x: bool) -> tuple[Tensor | None, Tensor | None]:
    return dz.new_empty(dz.shape) if needs_x else None, None if x is None else block.new_empty(block.shape)


class _BatInput(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, block)
        return _forward(x, block)

    @staticmethod
    def backward(ctx: Any, dz: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        x, block = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if twice.is_asked_for():
            x = torch.zeros_like(dz, requires_grad=True) if x is None else x
            return tuple(twice.gradients(_definition, (x, block), needs, (dz, dv)))
        dx, dblock = _backward(dz, dv, x, block, needs[0])
        return dx if needs[0] else None, dblock if needs[1] else None


class _AddTiled(Function):
    """Not for the compiler, which does better with PyTorch's operations: it fuses them with what comes after."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, v: Tensor) -> Tensor:
        ctx.r = v.shape[1]
        return shaped(add_to_blocks(rows(y), v, y), *y.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        sums = block_sum_torch if twice.is_asked_for() else block_sum
        return dy, sums(rows(dy), ctx.r) if ctx.needs_input_grad[1] else None
