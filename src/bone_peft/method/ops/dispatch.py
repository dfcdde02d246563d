"""Which path computes an operation.

``plain``
    the variant's definition, under PyTorch's own autograd.
``torch``
    autograd functions that save only what backward needs, made of torch operations, and of oneDNN's on a CPU.
``triton``
    the same functions, with their memory-bound pieces as Triton kernels.

The environment variable ``BONE_PEFT_PATH``, read at import, forces one of them; unset or ``auto`` leaves the choice
to this file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bone_peft.errors import BoneError

PLAIN, TORCH, TRITON = "plain", "torch", "triton"

SMALLEST, LARGEST = 16, 256
"""Block sizes that the kernels take: below, tensor cores have nothing to hold on to; above, registers run out."""


def _read_environment() -> str | None:
    value = os.environ.get("BONE_PEFT_PATH", "auto")
    if value == "auto":
        return None
    if value not in (PLAIN, TORCH, TRITON):
        raise BoneError(f"BONE_PEFT_PATH is {value!r}, and has to be auto, {PLAIN}, {TORCH} or {TRITON}.")
    return value


forced: str | None = _read_environment()
"""The path that all operations take, or ``None`` to choose by device, dtype and block size."""

_hosts_time_counts = ContextVar("hosts_time_counts", default=True)


@contextmanager
def hosts_time_is_free() -> Iterator[None]:
    """Inside, what is chosen is the fastest for the GPU alone: the calls are recorded as a CUDA graph."""
    token = _hosts_time_counts.set(False)
    try:
        yield
    finally:
        _hosts_time_counts.reset(token)


def hosts_time_counts() -> bool:
    """Whether a way that costs the host less may be taken, though another one costs the GPU less."""
    return torch.compiler.is_compiling() or _hosts_time_counts.get()


_HALF = (torch.bfloat16, torch.float16)


@torch.compiler.assume_constant_result
def _device_has_kernels(index: int | None) -> bool:
    return _is_new_enough(index)


@cache
def _is_new_enough(index: int | None) -> bool:
    if torch.version.hip or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(index) >= (8, 0)


# Asked before each layer runs, so by the shortest ways.
_func_runs, _traces = torch._C._are_functorch_transforms_active, torch._C._get_tracing_state


def plain() -> bool:
    """Whether the definitions themselves were asked for, or something runs that only they go through.

    That is ``torch.func`` (``grad``, ``vmap``, ...), forward-mode differentiation, ``torch.jit.trace`` and
    ``torch.export``.
    """
    if forced == PLAIN:
        return True
    if torch.compiler.is_compiling():
        # is_exporting() says yes to every compiler before PyTorch 2.12.
        return torch.compiler._is_exporting_flag
    return _func_runs() or _traces() is not None or forward_ad._current_level >= 0


def use_triton(x: Tensor, r: int) -> bool:
    """Whether Triton kernels take ``x`` (any shape) with blocks of ``r``; if not, torch operations do."""
    return SMALLEST <= r <= LARGEST and kernels_allowed(x)


def kernels_allowed(x: Tensor) -> bool:
    """Whether kernels in Triton, ours or others', may compute with ``x``."""
    if forced not in (None, TRITON) or x.dtype not in _HALF:
        return False
    if x.is_cuda:
        return _device_has_kernels(x.device.index) and not torch.are_deterministic_algorithms_enabled()
    return forced == TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least ``size``."""
    return 1 << max(size - 1, 0).bit_length()


def rows(x: Tensor) -> Tensor:
    """``x (..., features)`` as ``(tokens, features)`` with adjacent features, copied only if need be."""
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()


_unsafe_view = torch.ops.aten._unsafe_view.default


def shaped(y: Tensor, *shape: int) -> Tensor:
    """``y``, new memory, in another shape and as a tensor of its own: code behind a layer may write to its output."""
    return y if y.shape == shape and not y._is_view() else _unsafe_view(y, shape)


def computing_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a layer computes in for input ``x``: autocast's, or that of ``x``."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
