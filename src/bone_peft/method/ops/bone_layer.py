"""Bone on a layer's output: ``y0 + s D``, and ``W x + b + s D`` at once where the layer is a plain linear.

Backward keeps ``s`` and never ``x``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from . import decode, dispatch, twice
from .base_layer import BaseLayer
from .dispatch import computing_dtype, rows, shaped
from .operator import operator
from .product import product, product_backward
from .shared import shared_block_sum, with_block_sum


def bone_layer(x: Tensor, block: Tensor, below: BaseLayer, dropout: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The output of a layer with Bone: ``below(x) + s D``.

    Args:
        x: ``(..., in)``.
        block: ``D (r, out)``, of any dtype.
        below: the frozen layer; a black box, unless it says that it is a plain linear.
        dropout: applied to the ``x`` that the block sum sees, or ``None``.

    Returns:
        ``(..., out)``.
    """
    block = block.contiguous()
    r = block.shape[0]
    if dropout is not None:
        _, s, handle = with_block_sum(dropout(x), r)
    else:
        linear = below.linear(x)
        if linear is not None and not _needs_gradient(x, block):
            if decode.takes(x, linear[0], r):
                return decode.linear_bone_token(x, *linear, block)
            if _few_on_a_cpu(x):
                return _directly(x, shared_block_sum(x, r), linear, block)
        if _few_tokens(x, block):
            return _natively(x, shared_block_sum(x, r), below if linear is None else linear, block)
        x, s, handle = with_block_sum(x, r)
        if linear is not None:
            return linear_bone(x, s, handle, *linear, block)
    y = below.output(x)
    dtype = torch.promote_types(y.dtype, computing_dtype(x))
    return add_bone(y.to(dtype), s.to(dtype), handle, block)


def _few_tokens(x: Tensor, block: Tensor) -> bool:
    """Whether a GPU is done before the host has come to the next layer, so that the host's time is what counts."""
    if not x.is_cuda or dispatch.forced is not None or not dispatch.hosts_time_counts():
        return False
    return x.shape[:-1].numel() * (x.shape[-1] + block.shape[1]) <= 24 << 20


def _few_on_a_cpu(x: Tensor) -> bool:
    """Whether a CPU is done with the product sooner than with anything around it."""
    few = x.device.type == "cpu" and x.shape[:-1].numel() <= 16
    return few and dispatch.forced is None and not torch.compiler.is_compiling()


def _directly(x: Tensor, s: Tensor, linear: tuple[Tensor, Tensor | None], block: Tensor) -> Tensor:
    """The same without gradients, with ``D`` as it is kept: to round it takes longer than to multiply it."""
    y = F.linear(x, *linear)
    flat = y.view(s.shape[0], y.shape[-1])
    wide = torch.promote_types(torch.promote_types(y.dtype, block.dtype), torch.float32)
    if y.dtype == block.dtype == wide:
        flat.addmm_(s, block)
        return y
    return torch.addmm(flat.to(wide), s.to(wide), block.to(wide)).to(y.dtype).view(y.shape)


def _natively(x: Tensor, s: Tensor, below: BaseLayer | tuple[Tensor, Tensor | None], block: Tensor) -> Tensor:
    """The same under PyTorch's own autograd, which costs the host less than a function of ours."""
    if isinstance(below, tuple):
        weight, bias = below
        part = s @ block.to(s.dtype) if bias is None else torch.addmm(bias, s, block.to(s.dtype))
        y = part.addmm_(x.reshape(s.shape[0], x.shape[-1]), weight.T)
        return shaped(y, *x.shape[:-1], y.shape[1])
    y = below.output(x)
    return shaped(torch.addmm(y.reshape(s.shape[0], y.shape[-1]), s.to(y.dtype), block.to(y.dtype)), *y.shape)


def _needs_gradient(x: Tensor, block: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or block.requires_grad)


def linear_bone(x: Tensor, s: Tensor, handle: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    """``W x + b + s D``.

    Args:
        x: ``(..., in)``.
        s: ``(tokens, r)``, the block sums of ``x`` in its dtype.
        handle: ``(tokens, r)``, takes the gradient of ``s``; its values are not read.
        weight, bias: ``W (out, in)`` and ``b (out,)`` or ``None``, in the dtype of ``x``; they get no gradient.
        block: ``D (r, out)``, of any dtype; its gradient has the same.

    Returns:
        ``(..., out)`` in the dtype of ``x``.
    """
    return _LinearBone.apply(x, s, handle, weight, bias, block)


def add_bone(y: Tensor, s: Tensor, handle: Tensor, block: Tensor) -> Tensor:
    """``y + s D``, for a base layer that is a black box.

    Args:
        y: ``(..., out)``, the base layer's output.
        s, handle: ``(tokens, r)``, as above.
        block: ``D (r, out)``.

    Returns:
        ``(..., out)`` in the dtype of ``y``.
    """
    return _AddBone.apply(y, s, handle, block)


@operator("linear_bone(Tensor x, Tensor s, Tensor weight, Tensor? bias, Tensor block) -> (Tensor, Tensor)")
def _linear_forward(x: Tensor, s: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and ``D`` in the dtype of ``s`` for backward."""
    # s D first and the large product onto it: the other order would read and write y once more.
    y, rounded = product(s.contiguous(), block.contiguous(), bias)
    y.addmm_(rows(x), weight.T)
    return shaped(y, *x.shape[:-1], y.shape[-1]), rounded


@_linear_forward.fake
def _(x: Tensor, s: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], weight.shape[0]), torch.empty_like(block, dtype=s.dtype)


@operator("add_bone(Tensor y, Tensor s, Tensor block) -> (Tensor, Tensor)")
def _add_forward(y: Tensor, s: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    out, rounded = product(s.contiguous(), block.contiguous(), y=rows(y))
    return shaped(out, *y.shape), rounded


@_add_forward.fake
def _(y: Tensor, s: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), torch.empty_like(block, dtype=s.dtype)


@operator(
    "bone_backward(Tensor dy, Tensor? s, Tensor? weight, Tensor block, ScalarType dtype, ScalarType wide, bool needs_s)"
    " -> (Tensor, Tensor, Tensor)"
)
def _backward(
    dy: Tensor,
    s: Tensor | None,
    weight: Tensor | None,
    block: Tensor,
    dtype: torch.dtype,
    wide: torch.dtype,
    needs_s: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``dx`` if ``weight`` is given, ``ds`` in ``wide`` if it is wanted, ``dD`` in ``dtype`` if ``s`` is given."""
    flat = rows(dy)
    # First what moves bytes, while dy may still be in the cache.
    ds, dblock = product_backward(flat, None if s is None else s.contiguous(), block.contiguous(), dtype, needs_s)
    dx = None if weight is None else (flat @ weight).view(*dy.shape[:-1], weight.shape[1])
    return dx, None if ds is None else ds.to(wide), dblock


@_backward.fake
def _(
    dy: Tensor,
    s: Tensor | None,
    weight: Tensor | None,
    block: Tensor,
    dtype: torch.dtype,
    wide: torch.dtype,
    needs_s: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    tokens = dy.numel() // dy.shape[-1]
    return (
        None if weight is None else dy.new_empty(*dy.shape[:-1], weight.shape[1]),
        dy.new_empty(tokens, block.shape[0], dtype=wide) if needs_s else None,
        None if s is None else torch.empty_like(block, dtype=dtype),
    )


def _remember_inputs(ctx: Any, handle: Tensor, block: Tensor) -> None:
    # No activation is held by them: a parameter, and a handle without values.
    if not torch.compiler.is_compiling():
        ctx.inputs = handle, block


def _backward_twice(
    ctx: Any, dy: Tensor, s: Tensor | None, needs_s: bool, needs_block: bool, between: int
) -> tuple[Tensor | None, ...]:
    """``ds``, ``between`` times nothing, and ``dD``."""
    handle, block = ctx.inputs
    flat = dy.reshape(-1, dy.shape[-1])
    ds = (flat @ block.to(dy.dtype).T).to(handle.dtype) if needs_s else None
    dblock = None
    if needs_block and s is not None:
        dblock = (twice.with_history(s, handle).T @ flat).to(block.dtype)
    return ds, *[None] * between, dblock


class _LinearBone(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, s: Tensor, handle: Tensor, weight: Tensor, bias: Tensor | None, block: Tensor
    ) -> Tensor:
        needs = ctx.needs_input_grad
        y, rounded = _linear_forward(x, s, weight, bias, block)
        ctx.dtypes = block.dtype, handle.dtype
        _remember_inputs(ctx, handle, block)
        ctx.save_for_backward(s if needs[5] else None, weight if needs[0] else None, rounded)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        s, weight, block = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if twice.is_asked_for():
            dx = dy @ weight if needs[0] else None
            return dx, None, *_backward_twice(ctx, dy, s, needs[2], needs[5], 2)
        dx, ds, dblock = _backward(dy, s, weight, block, *ctx.dtypes, needs[2])
        return dx if needs[0] else None, None, ds if needs[2] else None, None, None, dblock if needs[5] else None


class _AddBone(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, s: Tensor, handle: Tensor, block: Tensor) -> Tensor:
        out, rounded = _add_forward(y, s, block)
        ctx.dtypes = block.dtype, handle.dtype
        _remember_inputs(ctx, handle, block)
        ctx.save_for_backward(s if ctx.needs_input_grad[3] else None, rounded)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        s, block = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if twice.is_asked_for():
            return dy if needs[0] else None, None, *_backward_twice(ctx, dy, s, needs[2], needs[3], 0)
        _, ds, dblock = _backward(dy, s, None, block, *ctx.dtypes, needs[2])
        return dy if needs[0] else None, None, ds if needs[2] else None, dblock if needs[3] else None
