"""From tokens to the rows of experts, each token once for every expert that it goes to, and back by sums."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from .dispatch import kernels_allowed, power_of_two, rows
from .launch import launch
from .operator import operator

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - PyTorch for CPUs may come without
    triton = None


def rows_of_tokens(x: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """``x (tokens, features)`` to ``(rows, features)``.

    Args:
        x: any dtype.
        tokens: ``(rows,)``, the token of each row.
        places: ``(tokens, k)``, the rows of each token: the same said the other way.
    """
    return _Rows.apply(x, tokens, places)


def sums_of_rows(y: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """``y (rows, features)`` to ``(tokens, features)``, the sum of each token's rows, in float32 at least."""
    return _Sums.apply(y, tokens, places)


@operator("token_sums(Tensor y, Tensor places) -> Tensor")
def token_sums(y: Tensor, places: Tensor) -> Tensor:
    """The same without a gradient."""
    number, k = places.shape
    y, places = rows(y), places.contiguous()
    features = y.shape[1]
    if not (number and features and kernels_allowed(y)):
        return y[places.flatten()].view(number, k, features).sum(1)
    out = y.new_empty(number, features)
    width = min(1024, power_of_two(features))
    launch(_token_sums, (number, triton.cdiv(features, width)), (y, places, out), (features, y.stride(0)), (k, width))
    return out


@token_sums.fake
def _(y: Tensor, places: Tensor) -> Tensor:
    return y.new_empty(len(places), y.shape[1])


class _Rows(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, places)
        return x.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _Sums.apply(dy, *ctx.saved_tensors), None, None


class _Sums(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, places)
        return token_sums(y, places)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _Rows.apply(dy, *ctx.saved_tensors), None, None


if triton is not None:

    @triton.jit
    def _token_sums(y, places, out, features, y_stride, K: tl.constexpr, WIDTH: tl.constexpr):
        token = tl.program_id(0).to(tl.int64)
        c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        total = tl.zeros((WIDTH,), dtype=tl.float32)
        for j in tl.static_range(K):
            row = tl.load(places + token * K + j).to(tl.int64)
            total += tl.load(y + row * y_stride + c, mask=c < features, other=0.0).to(tl.float32)
        tl.store(out + token * features + c, total.to(out.dtype.element_ty), mask=c < features)
