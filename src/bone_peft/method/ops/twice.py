"""Backward through backward. Kernels have no gradient of their own, so the definition is run again, under autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def is_asked_for() -> bool:
    """Whether this backward is to have a backward (``create_graph=True``)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def gradients(
    definition: Callable[..., Any], inputs: Sequence[Tensor], needs: Sequence[bool], outputs: Any
) -> list[Tensor | None]:
    """The gradients of ``definition(*inputs)``, which can be differentiated themselves.

    Args:
        definition: made of PyTorch's operations.
        inputs: tensors as they came, with their history.
        needs: which of them a gradient is wanted of.
        outputs: the gradients of what ``definition`` returns.
    """
    wanted = [tensor for tensor, needed in zip(inputs, needs, strict=True) if needed]
    found = iter(torch.autograd.grad(definition(*inputs), wanted, outputs, create_graph=True, allow_unused=True))
    return [next(found) if needed else None for needed in needs]


class _WithHistory(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, history: Tensor) -> Tensor:
        ctx.dtype = history.dtype
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient.to(ctx.dtype)


def with_history(values: Tensor, history: Tensor) -> Tensor:
    """The values of one tensor and the gradient of another, of the same shape."""
    return _WithHistory.apply(values, history)
