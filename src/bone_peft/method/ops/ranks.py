"""Sums over processes that each have a part: what autograd adds up in one direction, it passes on in the other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor
from torch.autograd import Function


def shared(tensor: Tensor, group: Any) -> Tensor:
    """``tensor``, the same in all processes of ``group``, for a computation of which each has a part.

    Its gradient is the sum of theirs. Second derivatives are not defined.
    """
    asks = torch.is_grad_enabled() and tensor.requires_grad
    return _Shared.apply(tensor, group) if asks else tensor


def summed(part: Tensor, group: Any) -> Tensor:
    """The sum of the ``part`` of each process of ``group``, which all of them get. Each part has its gradient."""
    return _Summed.apply(part, group)


class _Shared(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _sum(gradients[0], ctx.group), None


class _Summed(Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        return _sum(part, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def _sum(tensor: Tensor, group: Any) -> Tensor:
    return collectives.wait_tensor(collectives.all_reduce(tensor.contiguous(), "sum", group))
