"""A linear layer with Bat's weight. ``W'`` is built for the product and built again in backward, never kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from . import onednn, twice
from .base_layer import BaseLayer
from .bat_weight import bat_weight, bat_weight_backward, bat_weight_torch
from .dispatch import computing_dtype, rows, shaped
from .operator import operator


def bat_layer(x: Tensor, block: Tensor, below: BaseLayer) -> Tensor | None:
    """The output ``(..., out)`` of a layer with Bat, for ``x (..., in)`` and ``B (out/r, r, r)``.

    ``None`` if something below is trained too: its gradient has to come from the definition.
    """
    block = block.contiguous()
    linear = below.linear(x)
    if linear is not None:
        return linear_bat(x, *linear, block)
    if not below.frozen:
        return None
    dtype = computing_dtype(x)
    bias = None if below.bias is None else below.bias.to(dtype)
    return linear_bat(x.to(dtype), lambda: below.weight(dtype), bias, block)


def linear_bat(x: Tensor, weight: Tensor | Callable[[], Tensor], bias: Tensor | None, block: Tensor) -> Tensor:
    """``W' x + b``.

    Args:
        x: ``(..., in)``.
        weight: ``W (out, in)`` in the dtype of ``x``, without gradient; or a function that returns it, called once in
            forward and once in backward, so that a dequantized weight is not kept either.
        bias: ``(out,)`` in the dtype of ``x``, without gradient, or ``None``.
        block: ``B (out/r, r, r)``, of any dtype; its gradient has the same.

    Returns:
        ``(..., out)``.
    """
    if isinstance(weight, Tensor):
        return _LinearBat.apply(x, weight, None, bias, block)
    if torch.compiler.is_compiling():
        return _LinearBat.apply(x, weight(), None, bias, block)
    return _LinearBat.apply(x, None, weight, bias, block)


@operator("linear_bat(Tensor x, Tensor weight, Tensor? bias, Tensor block) -> Tensor")
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    y = F.linear(rows(x), bat_weight(weight.contiguous(), block.contiguous()), bias)
    return shaped(y, *x.shape[:-1], y.shape[-1])


@_forward.fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@operator("bat_backward(Tensor dy, Tensor? x, Tensor weight, Tensor block, bool needs_x) -> (Tensor, Tensor)")
def _backward(
    dy: Tensor, x: Tensor | None, weight: Tensor, block: Tensor, needs_x: bool
) -> tuple[Tensor | None, Tensor | None]:
    """``dx``, if it is wanted, and ``dB``, if ``x`` is given."""
    flat = rows(dy)
    weight, block = weight.contiguous(), block.contiguous()
    dblock = None
    if x is None:
        new: Tensor | None = bat_weight(weight, block)
    else:
        new, dblock = bat_weight_backward(weight, block, onednn.matmul(flat.T, rows(x)), rebuild=needs_x)
    dx = (flat @ new).view(*dy.shape[:-1], weight.shape[1]) if needs_x and new is not None else None
    return dx, dblock


@_backward.fake
def _(
    dy: Tensor, x: Tensor | None, weight: Tensor, block: Tensor, needs_x: bool
) -> tuple[Tensor | None, Tensor | None]:
    dx = dy.new_empty(*dy.shape[:-1], weight.shape[1]) if needs_x else None
    return dx, None if x is None else block.new_empty(block.shape)


def _definition(weight: Tensor, bias: Tensor | None, x: Tensor, block: Tensor) -> Tensor:
    return F.linear(x, bat_weight_torch(weight, block), bias)


class _LinearBat(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        read_weight: Callable[[], Tensor] | None,
        bias: Tensor | None,
        block: Tensor,
    ) -> Tensor:
        ctx.read_weight = read_weight
        ctx.bias = bias
        ctx.save_for_backward(x if ctx.needs_input_grad[4] else None, weight, block)
        return _forward(x, weight if read_weight is None else read_weight(), bias, block)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, block = ctx.saved_tensors
        needs = ctx.needs_input_grad
        base = weight if ctx.read_weight is None else ctx.read_weight()
        if twice.is_asked_for():
            # What is linear in an x that is not kept does not depend on it.
            x = dy.new_zeros(*dy.shape[:-1], base.shape[1], requires_grad=True) if x is None else x
            wanted = needs[0], needs[4]
            dx, dblock = twice.gradients(partial(_definition, base, ctx.bias), (x, block), wanted, dy)
            return dx, None, None, None, dblock
        dx, dblock = _backward(dy, x, base, block, needs[0])
        return dx if needs[0] else None, None, None, None, dblock if needs[4] else None
