"""The product with Bone's block, ``s D``, and its gradients ``ds = dy D^T`` and ``dD = s^T dy``."""

from __future__ import annotations

import torch
from torch import Tensor

from . import onednn
from .dispatch import power_of_two, use_triton
from .launch import launch

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - PyTorch for CPUs may come without
    triton = None


def product(s: Tensor, block: Tensor, bias: Tensor | None = None, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``s D + bias + y``.

    Args:
        s: ``(tokens, r)``, contiguous, in the dtype to compute in.
        block: ``D (r, out)``, contiguous, of any dtype.
        bias: ``(out,)`` in the dtype of ``s``, or ``None``.
        y: ``(tokens, out)`` with adjacent features, in the dtype of ``s``, or ``None``.

    Returns:
        ``(tokens, out)``, new memory; and ``D`` in the dtype of ``s``, for backward.
    """
    r, features = block.shape
    tokens = s.shape[0]
    if not use_triton(s, r) or not tokens:
        block = block.to(s.dtype)
        return _product_torch(s, block, bias, y), block
    out = torch.empty(tokens, features, dtype=s.dtype, device=s.device)
    rounded = block if block.dtype == s.dtype else torch.empty_like(block, dtype=s.dtype)
    rows, span, columns, warps = _tiles(tokens, features)
    grid = (triton.cdiv(features, columns), triton.cdiv(tokens, span))
    launch(
        _product,
        grid,
        (s, block, rounded, out if bias is None else bias, out if y is None else y, out),
        (tokens, features, 0 if y is None else y.stride(0)),
        (r, power_of_two(r), span, rows, columns, rounded is not block, bias is not None, y is not None),
        num_warps=warps,
    )
    return out, rounded


def _tiles(tokens: int, features: int) -> tuple[int, int, int, int]:
    """Tokens at a time, tokens and outputs of a program, and its warps: the fastest on an H100 with r=64."""
    if tokens <= 64:
        rows = 16 if tokens <= 16 else 64
        return rows, rows, 128, 8
    if tokens < 2048:
        return 64, 128, 64 if features <= 4096 else 128, 4
    return (64, 256, 128, 4) if features <= 2048 else (128, 512, 128, 8)


def _product_torch(s: Tensor, block: Tensor, bias: Tensor | None, y: Tensor | None) -> Tensor:
    if onednn.takes(s, block):
        return onednn.multiply_add(s, block, bias, y)
    if y is None:
        return s @ block if bias is None else torch.addmm(bias, s, block)
    out = torch.addmm(y, s, block)
    return out if bias is None else out.add_(bias)


def product_backward(
    dy: Tensor, s: Tensor | None, block: Tensor, dtype: torch.dtype, needs_s: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``s D``.

    Args:
        dy: ``(tokens, out)`` with adjacent features.
        s: ``(tokens, r)``, contiguous, in the dtype of ``dy``; ``None`` if ``dD`` is not wanted.
        block: ``D (r, out)``, contiguous, in the dtype of ``dy``.
        dtype: of ``D`` as it is kept.
        needs_s: whether ``ds`` is wanted.

    Returns:
        ``ds (tokens, r)``, in float32 from the kernel, else in the dtype of ``dy``; and ``dD (r, out)`` in ``dtype``,
        summed in float32.
    """
    r, features = block.shape
    tokens = dy.shape[0]
    if not use_triton(dy, r) or not tokens:
        ds = onednn.matmul(dy, block.T) if needs_s else None
        return ds, None if s is None else _transposed_product(s, dy, dtype)
    # Programs in flight read one region of dy twice, the second time from the cache.
    region = 1024 if tokens * features >= 1 << 24 else 512 if tokens * features >= 1 << 22 else 256
    each = region // 128
    regions = (triton.cdiv(tokens, region), triton.cdiv(features, region))
    ds = torch.zeros(tokens, r, dtype=torch.float32, device=dy.device)
    dblock = torch.zeros(r, features, dtype=torch.float32, device=dy.device)
    launch(
        _product_backward,
        (regions[0] * regions[1] * 2 * each,),
        (dy, dy if s is None else s, block, ds, dblock),
        (tokens, features, dy.stride(0), regions[1]),
        (r, power_of_two(r), region, 128, 64, needs_s, s is not None),
        num_warps=4 if r <= 64 else 8,
        num_stages=3 if r <= 64 else 2,
    )
    return ds if needs_s else None, None if s is None else dblock.to(dtype)


def _transposed_product(s: Tensor, dy: Tensor, dtype: torch.dtype) -> Tensor:
    """``s^T dy``, not rounded to their dtype on the way where the device can."""
    if dtype == torch.float32 and dy.is_cuda and dy.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(s.T, dy, out_dtype=torch.float32)
    return onednn.matmul(s.T, dy).to(dtype)


if triton is not None:

    @triton.jit
    def _product(
        s,
        block,
        rounded,
        bias,
        y,
        out,
        tokens,
        features,
        y_stride,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        SPAN: tl.constexpr,
        BLOCK_T: tl.constexpr,
        BLOCK_O: tl.constexpr,
        ROUND: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        HAS_Y: tl.constexpr,
    ):
        # A program holds its part of D and goes through SPAN tokens.
        o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
        c = tl.arange(0, WIDTH)
        dtype = out.dtype.element_ty
        place = c[:, None] * features + o[None, :]
        square = (c < R)[:, None] & (o < features)[None, :]
        right = tl.load(block + place, mask=square, other=0.0).to(dtype)
        if ROUND:  # noqa: SIM102 - decided when compiling
            if tl.program_id(1) == 0:
                tl.store(rounded + place, right, mask=square)
        first = tl.program_id(1) * SPAN
        for start in range(first, tl.minimum(first + SPAN, tokens), BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            wide = t.to(tl.int64)[:, None]
            left = tl.load(s + wide * R + c[None, :], mask=(t < tokens)[:, None] & (c < R)[None, :], other=0.0)
            total = tl.dot(left, right)
            mask = (t < tokens)[:, None] & (o < features)[None, :]
            if HAS_BIAS:
                total += tl.load(bias + o, mask=o < features, other=0.0).to(tl.float32)[None, :]
            if HAS_Y:
                total += tl.load(y + wide * y_stride + o[None, :], mask=mask, other=0.0).to(tl.float32)
            tl.store(out + wide * features + o[None, :], total.to(dtype), mask=mask)

    @triton.jit
    def _product_backward(
        dy,
        s,
        block,
        ds,
        dblock,
        tokens,
        features,
        dy_stride,
        regions_o,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        REGION: tl.constexpr,
        PART: tl.constexpr,
        STEP: tl.constexpr,
        NEEDS_S: tl.constexpr,
        NEEDS_BLOCK: tl.constexpr,
    ):
        # Of the programs of one region (REGION tokens x REGION outputs), half sum ds over its outputs, half sum dD
        # over its tokens; each owns PART of what it does not sum over.
        each = REGION // PART
        pid = tl.program_id(0)
        region = pid // (2 * each)
        part = (pid // 2) % each
        first_t = (region // regions_o) * REGION
        first_o = (region % regions_o) * REGION
        c = tl.arange(0, WIDTH)
        if pid % 2 == 0:
            t = first_t + part * PART + tl.arange(0, PART)
            if NEEDS_S and first_t + part * PART < tokens:
                row = dy + t.to(tl.int64)[:, None] * dy_stride
                total = tl.zeros((PART, WIDTH), dtype=tl.float32)
                for start in range(first_o, tl.minimum(first_o + REGION, features), STEP):
                    o = start + tl.arange(0, STEP)
                    piece = tl.load(row + o[None, :], mask=(t < tokens)[:, None] & (o < features)[None, :], other=0.0)
                    right = tl.load(
                        block + c[:, None] * features + o[None, :],
                        mask=(c < R)[:, None] & (o < features)[None, :],
                        other=0.0,
                    )
                    total += tl.dot(piece, tl.trans(right))
                mask = (t < tokens)[:, None] & (c < R)[None, :]
                tl.atomic_add(ds + t.to(tl.int64)[:, None] * R + c[None, :], total, mask=mask, sem="relaxed")
        else:
            o = first_o + part * PART + tl.arange(0, PART)
            if NEEDS_BLOCK and first_o + part * PART < features:
                total = tl.zeros((WIDTH, PART), dtype=tl.float32)
                for start in range(first_t, tl.minimum(first_t + REGION, tokens), STEP):
                    t = start + tl.arange(0, STEP)
                    wide = t.to(tl.int64)[:, None]
                    piece = tl.load(
                        dy + wide * dy_stride + o[None, :],
                        mask=(t < tokens)[:, None] & (o < features)[None, :],
                        other=0.0,
                    )
                    left = tl.load(s + wide * R + c[None, :], mask=(t < tokens)[:, None] & (c < R)[None, :], other=0.0)
                    total += tl.dot(tl.trans(left), piece)
                mask = (c < R)[:, None] & (o < features)[None, :]
                tl.atomic_add(dblock + c[:, None] * features + o[None, :], total, mask=mask, sem="relaxed")
