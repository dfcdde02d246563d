"""One block sum for all layers that read one ``x``: q, k and v, or gate and up.

A sum is remembered only while the module that the readers belong to runs, once (:func:`opened` to :func:`closed`), and
only for what autograd knows the history of. A leaf, or anything outside of autograd, may be memory that somebody else
writes to, by ways that PyTorch does not see; unless the module is one of Transformers' own, whose code writes to
nothing between its readers. An entry dies with its ``x``, so no activation outlives its use.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import twice
from .block_sum import add_to_blocks, add_to_blocks_torch, block_sum, block_sum_torch
from .dispatch import rows, use_triton
from .operator import operator

_is_capturing: Callable[[], bool] = (
    torch.cuda.is_current_stream_capturing if torch.backends.cuda.is_built() else lambda: False
)

Sums = tuple[Tensor, Tensor, Tensor]


def with_block_sum(x: Tensor, r: int) -> Sums:
    """``x`` itself, and ``s = sum_i x_i``.

    Args:
        x: ``(..., in)``.
        r: block size.

    Returns:
        ``x (..., in)``, to be used in place of the argument: its gradient and that of ``s`` then become one in a single
        pass, however many layers read them. Then ``s (tokens, r)`` in the dtype of ``x``, without gradient. Last, a
        tensor of that shape that takes the gradient of ``s``, in float32, as the kernels give it; it has no values.
    """
    if torch.compiler.is_compiling():
        # The compiler removes the repetitions itself.
        if use_triton(x, r):
            return x, *_FusedBlockSum.apply(x, r)
        wide = block_sum_torch(x, r, torch.promote_types(x.dtype, torch.float32)).reshape(x.shape[:-1].numel(), r)
        return x, wide.detach().to(x.dtype), wide
    return _once(x, r, _with_block_sum)


def shared_block_sum(x: Tensor, r: int) -> Tensor:
    """``s (tokens, r)`` alone, under PyTorch's own autograd."""
    return _once(x, r, _native_block_sum)


class _Run:
    """One run of a module whose layers may read one ``x``: the last ``x``, and what was computed from it."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.is_captured = _is_capturing()
        self.is_known = type(module).__module__.startswith("transformers.models.")
        self.forget()

    def forget(self, _: Any = None) -> None:
        self.owner: Any = None
        self.key: Any = None
        self.result: Any = None


class _Runs(threading.local):
    """The modules that run now in this thread, from the outside in."""

    def __init__(self) -> None:
        self.now: list[_Run] = []


_runs = _Runs()


def opened(module: Any, _: Any) -> None:
    """A forward pre-hook of a module that holds several readers."""
    if not torch.compiler.is_compiling():
        _close(module)  # What an error left open.
        _runs.now.append(_Run(module))


def closed(module: Any, *_: Any) -> None:
    """The forward hook that goes with it."""
    if not torch.compiler.is_compiling():
        _close(module)


def _close(module: Any) -> None:
    for index, run in enumerate(_runs.now):
        if run.module is module:
            del _runs.now[index:]
            return


def _once(x: Tensor, r: int, compute: Callable[[Tensor, int], Any]) -> Any:
    """``compute(x, r)``, or what it gave last time if nothing can have changed. The result must not hold ``x``."""
    if (
        torch.compiler.is_compiling()
        or not _runs.now
        or type(x) is not Tensor
        or (x.grad_fn is None and not _runs.now[-1].is_known)
        or _is_capturing() != _runs.now[-1].is_captured
    ):
        return compute(x, r)
    run = _runs.now[-1]
    version = None if x.is_inference() else x._version
    key = (compute, version, r, torch.is_grad_enabled(), x.requires_grad, _stream(x))
    if run.owner is not None and run.owner() is x and run.key == key:
        return run.result
    result = compute(x, r)
    run.key, run.result = key, result
    run.owner = weakref.ref(x, run.forget)
    return result


def _native_block_sum(x: Tensor, r: int) -> Tensor:
    features = x.shape[-1]
    if features % r or not x.is_contiguous():
        return block_sum_torch(x, r).reshape(x.shape[:-1].numel(), r)
    return x.view(x.shape[:-1].numel(), features // r, r).sum(1)


def _with_block_sum(x: Tensor, r: int) -> Sums:
    if torch.is_grad_enabled() and x.requires_grad:
        return _WithBlockSum.apply(x, r)
    s = block_sum(rows(x), r)
    return x.detach(), s, s


class _WithBlockSum(Function):
    """Keeps nothing for backward but the size of the blocks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, r: int) -> Sums:
        ctx.set_materialize_grads(False)
        ctx.like = x.dtype, x.shape
        s = block_sum(rows(x), r)
        ctx.mark_non_differentiable(s)
        handle = torch.empty((), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device).expand(s.shape)
        return x.detach(), s, handle

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, _: None, ds: Tensor | None) -> tuple[Tensor | None, None]:
        if ds is None:
            return dx, None
        dtype, shape = ctx.like
        if twice.is_asked_for():
            tiled = add_to_blocks_torch(None, ds, shape[-1], dtype).reshape(shape)
            return tiled if dx is None else dx + tiled, None
        like = torch.empty(0, shape[-1], dtype=dtype, device=ds.device) if dx is None else dx
        out = add_to_blocks(None if dx is None else rows(dx), ds.contiguous(), like)
        return out.view(shape), None


@operator("block_sum(Tensor x, int r) -> Tensor")
def _block_sum(x: Tensor, r: int) -> Tensor:
    return block_sum(rows(x), r)


@_block_sum.fake
def _(x: Tensor, r: int) -> Tensor:
    return x.new_empty(x.shape[:-1].numel(), r)


class _FusedBlockSum(Function):
    """For the compiler: backward in PyTorch's operations, which it fuses with what else is added to that of ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, r: int) -> tuple[Tensor, Tensor]:
        ctx.dtype, ctx.shape = x.dtype, x.shape
        s = _block_sum(x, r)
        ctx.mark_non_differentiable(s)
        return s, torch.empty_like(s, dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, ds: Tensor) -> tuple[Tensor, None]:
        return add_to_blocks_torch(None, ds, ctx.shape[-1], ctx.dtype).view(ctx.shape), None


def _stream(x: Tensor) -> int:
    return torch._C._cuda_getCurrentRawStream(x.device.index) if x.is_cuda else 0
