"""Products of rows with matrices, where each row has the matrix of the expert that it was sent to.

Rows lie in the order of their experts; ``ends (experts,)``, in int32, says where the rows of each end. Nothing of the
size of all matrices is made, but for a gradient of them where one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import dispatch
from .bat_weight import bat_weight, bat_weight_backward
from .operator import operator
from .spans import spans


def grouped_product(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """``x_t M_e`` for each row ``t`` of expert ``e``.

    Args:
        x: ``(rows, a)``.
        matrices: ``M (experts, a, b)``, any strides, of any dtype; its gradient has the same.
        ends: ``(experts,)``.

    Returns:
        ``(rows, b)`` in the dtype of ``x``.
    """
    return _Product.apply(x, matrices, ends)


def grouped_bat(x: Tensor, weight: Callable[[], Tensor], block: Tensor, ends: Tensor) -> Tensor:
    """``W'_e x_t`` with Bat's ``W'_e`` of each expert, which is built again in backward and not kept.

    Args:
        x: ``(rows, in)``.
        weight: returns ``W (experts, out, in)``, in the dtype of ``x``, without gradient. Called once in forward and
            once in backward, so that what a model keeps in another order is not kept in this one.
        block: ``B (experts, out/r, r, r)``, of any dtype; its gradient has the same.
        ends: ``(experts,)``.

    Returns:
        ``(rows, out)`` in the dtype of ``x``.
    """
    if torch.compiler.is_compiling():
        return _Bat.apply(x, weight(), None, block, ends)
    return _Bat.apply(x, None, weight, block, ends)


def _is_native(*tensors: Tensor) -> bool:
    """Whether PyTorch's own grouped product takes these: rows of 16 bytes, and a GPU that has it."""
    x = tensors[0]
    if x.dtype != torch.bfloat16 or not x.is_cuda or not hasattr(F, "grouped_mm") or not x.shape[0]:
        return False
    return torch.cuda.get_device_capability(x.device) >= (8, 0) and all(map(_is_aligned, tensors))


def _is_aligned(tensor: Tensor) -> bool:
    *outer, rows, columns = tensor.stride()
    if 1 not in (rows, columns) or tensor.data_ptr() % 16:
        return False
    return all(stride * tensor.element_size() % 16 == 0 for stride in (*outer, columns if rows == 1 else rows))


@operator("grouped_product(Tensor x, Tensor matrices, Tensor ends) -> Tensor")
def _product(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    if _is_native(x, matrices):
        return F.grouped_mm(x, matrices, offs=ends)
    y = x.new_empty(x.shape[0], matrices.shape[2])
    for expert, rows in spans(ends):
        torch.mm(x[rows], matrices[expert], out=y[rows])
    return y


@_product.fake
def _(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], matrices.shape[2])


@operator("grouped_outer(Tensor x, Tensor dy, Tensor ends, ScalarType dtype) -> Tensor")
def _outer(x: Tensor, dy: Tensor, ends: Tensor, dtype: torch.dtype) -> Tensor:
    """``sum_t x_t^T dy_t`` over the rows of each expert: ``(experts, a, b)``."""
    if _is_native(x, dy):
        return F.grouped_mm(x.mT, dy, offs=ends).to(dtype)
    found = torch.zeros(len(ends), x.shape[1], dy.shape[1], dtype=dtype, device=x.device)
    for expert, rows in spans(ends):
        found[expert] = x[rows].mT @ dy[rows]
    return found


@_outer.fake
def _(x: Tensor, dy: Tensor, ends: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(len(ends), x.shape[1], dy.shape[1], dtype=dtype)


@operator("grouped_bat_weight(Tensor weight, Tensor block) -> Tensor")
def _bat_weight(weight: Tensor, block: Tensor) -> Tensor:
    """``W'``: all experts together are one weight with more block rows."""
    return bat_weight(weight.flatten(0, 1).contiguous(), block.flatten(0, 1).contiguous()).view(weight.shape)


@_bat_weight.fake
def _(weight: Tensor, block: Tensor) -> Tensor:
    return weight.new_empty(weight.shape)


@operator("grouped_bat_backward(Tensor weight, Tensor block, Tensor dweight, bool rebuild) -> (Tensor, Tensor)")
def _bat_backward(weight: Tensor, block: Tensor, dweight: Tensor, rebuild: bool) -> tuple[Tensor | None, Tensor]:
    """``W'`` again if it is wanted, and ``dB``."""
    flat, dflat = weight.flatten(0, 1).contiguous(), dweight.flatten(0, 1).contiguous()
    new, dblock = bat_weight_backward(flat, block.flatten(0, 1).contiguous(), dflat, rebuild)
    return None if new is None else new.view(weight.shape), dblock.view(block.shape)


@_bat_backward.fake
def _(weight: Tensor, block: Tensor, dweight: Tensor, rebuild: bool) -> tuple[Tensor | None, Tensor]:
    return weight.new_empty(weight.shape) if rebuild else None, torch.empty_like(block)


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
        rounded, x = matrices.to(x.dtype), dispatch.rows(x)
        ctx.dtype = matrices.dtype
        needs = ctx.needs_input_grad
        ctx.save_for_backward(x if needs[1] else None, rounded if needs[0] else None, ends)
        return _product(x, rounded, ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, matrices, ends = ctx.saved_tensors
        needs, dy = ctx.needs_input_grad, dispatch.rows(dy)
        dx = _product(dy, matrices.mT, ends) if needs[0] else None
        return dx, _outer(x, dy, ends, ctx.dtype) if needs[1] else None, None


class _Bat(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, read: Callable[[], Tensor] | None, block: Tensor, ends: Tensor
    ) -> Tensor:
        x = dispatch.rows(x)
        ctx.read = read
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, block, ends)
        return _product(x, _bat_weight(weight if read is None else read(), block).mT, ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, block, ends = ctx.saved_tensors
        weight = weight if ctx.read is None else ctx.read()
        needs, dy = ctx.needs_input_grad, dispatch.rows(dy)
        dblock = None
        if needs[3]:
            new, dblock = _bat_backward(weight, block, _outer(dy, x, ends, weight.dtype), needs[0])
        else:
            new = _bat_weight(weight, block)
        return _product(dy, new, ends) if needs[0] else None, None, None, dblock, None
