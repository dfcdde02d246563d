"""Products of float32 matrices on a CPU by oneDNN, which PyTorch itself takes for 16-bit types alone.

On an AMD EPYC it needs half of MKL's time. No autograd: for use within functions that bring their own.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 1 << 21
"""Multiplications from which on the product gained more than the call costs, on two cores of an EPYC."""

_linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_there = hasattr(_linear, "binary") and platform.machine().lower() in ("x86_64", "amd64")
_PLAIN = (Tensor, nn.Parameter)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a b``, for ``a (n, k)`` and ``b (k, m)`` with any strides, by oneDNN where that pays."""
    return multiply_add(a, b) if takes(a, b) else a @ b


def takes(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN is there and ``a b`` is for it: large, in float32, on an x86 processor, of tensors with values."""
    return (
        _there
        and type(a) in _PLAIN
        and type(b) in _PLAIN
        and a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and a.shape[0] * b.numel() >= SMALLEST
        and bool(torch.backends.mkldnn.enabled)
    )


def multiply_add(a: Tensor, b: Tensor, bias: Tensor | None = None, c: Tensor | None = None) -> Tensor:
    """``a b + bias + c``, for products that it :func:`takes`.

    Args:
        a: ``(n, k)``.
        b: ``(k, m)``.
        bias: ``(m,)`` or ``None``.
        c: ``(n, m)`` or ``None``.

    Returns:
        ``(n, m)``, new memory.
    """
    bias = None if bias is None else bias.contiguous()  # Of this one argument oneDNN's binding reads no strides.
    if c is None:
        return _linear(a, b.mT, bias, "none", [], "")
    return _linear.binary(a, c, b.mT, bias, "add")
