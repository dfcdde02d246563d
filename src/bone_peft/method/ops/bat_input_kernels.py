"""The memory-bound halves of input-shared Bat: from ``x`` to ``z`` and ``v``, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import power_of_two, use_triton
from .launch import launch

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - PyTorch for CPUs may come without
    triton = None


def transform(x: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """``z = x + u`` and ``v = sum_i u_i`` with ``u_i = D_i x_i``.

    Args:
        x: ``(tokens, in)`` with adjacent features.
        block: ``D (in/r, r, r)``, contiguous, of any dtype.

    Returns:
        ``z (tokens, in)`` in the dtype of ``x``; ``v (tokens, r)``, in float32 from the kernel, else in that of ``x``.
    """
    number, r, _ = block.shape
    tokens, features = x.shape
    if not kernel_takes(x, r) or not tokens:
        # One batched product over the blocks, each of which is a strided matrix of x.
        u = torch.bmm(x.view(tokens, number, r).transpose(0, 1), block.to(x.dtype).mT)
        z = torch.empty(tokens, features, dtype=x.dtype, device=x.device)
        torch.add(x.view(tokens, number, r), u.transpose(0, 1), out=z.view(tokens, number, r))
        return z, u.sum(0)
    z = torch.empty(tokens, features, dtype=x.dtype, device=x.device)
    v = torch.zeros(tokens, r, dtype=torch.float32, device=x.device)
    each = min(8, number)
    grid = (triton.cdiv(number, each), triton.cdiv(tokens, 128))
    launch(_transform, grid, (x, block, z, v), (tokens, number, x.stride(0)), (each, r, power_of_two(r), 128, 3))
    return z, v


def transform_backward(
    dz: Tensor, dv: Tensor, x: Tensor | None, block: Tensor, needs_x: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """``du_i = dz_i + dv``, then ``dD_i = du_i x_i^T`` and ``dx_i = dz_i + D_i^T du_i``.

    Args:
        dz: ``(tokens, in)`` with adjacent features.
        dv: ``(tokens, r)``, contiguous.
        x: ``(tokens, in)`` with adjacent features, or ``None`` if ``dD`` is not wanted.
        block: ``D (in/r, r, r)``, contiguous.
        needs_x: whether ``dx`` is wanted.

    Returns:
        ``dx (tokens, in)`` in the dtype of ``dz``, and ``dD`` in that of ``block``, summed in float32.
    """
    number, r, _ = block.shape
    tokens, features = dz.shape
    if not kernel_takes(dz, r) or not tokens:
        return _transform_backward_torch(dz, dv, x, block, needs_x)
    dx = torch.empty(tokens, features, dtype=dz.dtype, device=dz.device) if needs_x else None
    dblock = None if x is None else torch.zeros(block.shape, dtype=torch.float32, device=dz.device)
    each = 1024 if tokens >= 4096 else 256
    launch(
        _transform_backward,
        (number, triton.cdiv(tokens, each)),
        (dz, dv, dz if x is None else x, block, dz if dx is None else dx, dv if dblock is None else dblock),
        (tokens, dz.stride(0), 0 if x is None else x.stride(0), features),
        (r, power_of_two(r), 128 if r <= 64 and number <= 64 else 64, each, dx is not None, dblock is not None, 2),
        num_warps=4 if r <= 64 else 8,
    )
    return dx, None if dblock is None else dblock.to(block.dtype)


def _transform_backward_torch(
    dz: Tensor, dv: Tensor, x: Tensor | None, block: Tensor, needs_x: bool
) -> tuple[Tensor | None, Tensor | None]:
    number, r, _ = block.shape
    tokens, features = dz.shape
    blocks = dz.view(tokens, number, r).transpose(0, 1)
    du = blocks + dv.to(dz.dtype)
    dx = dblock = None
    if x is not None:
        dblock = torch.bmm(du.mT, x.view(tokens, number, r).transpose(0, 1)).to(block.dtype)
    if needs_x:
        dx = torch.empty(tokens, features, dtype=dz.dtype, device=dz.device)
        back = torch.bmm(du, block.to(dz.dtype))
        torch.add(blocks, back, out=dx.view(tokens, number, r).transpose(0, 1))
    return dx, dblock


def kernel_takes(x: Tensor, r: int) -> bool:
    """Whether the kernels take ``x`` with blocks of ``r``."""
    return use_triton(x, r) and r <= 128


if triton is not None:

    @triton.jit
    def _transform(
        x,
        block,
        z,
        v,
        tokens,
        number,
        x_stride,
        EACH: tl.constexpr,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK_T: tl.constexpr,
        STAGES: tl.constexpr,
    ):
        t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
        c = tl.arange(0, WIDTH)
        wide = t.to(tl.int64)[:, None]
        mask = (t < tokens)[:, None] & (c < R)[None, :]
        square = (c < R)[:, None] & (c < R)[None, :]
        dtype = x.dtype.element_ty
        first = tl.program_id(0) * EACH
        total = tl.zeros((BLOCK_T, WIDTH), dtype=tl.float32)
        for i in tl.range(first, tl.minimum(first + EACH, number), num_stages=STAGES):
            piece = tl.load(x + wide * x_stride + i * R + c[None, :], mask=mask, other=0.0)
            # D_i (a, d), read as (d, a).
            d = tl.load(block + i * R * R + c[None, :] * R + c[:, None], mask=square, other=0.0)
            u = tl.dot(piece, d.to(dtype))
            total += u
            new = piece.to(tl.float32) + u
            tl.store(z + wide * (number * R) + i * R + c[None, :], new.to(dtype), mask=mask)
        tl.atomic_add(v + wide * R + c[None, :], total, mask=mask, sem="relaxed")

    @triton.jit
    def _transform_backward(
        dz,
        dv,
        x,
        block,
        dx,
        dblock,
        tokens,
        dz_stride,
        x_stride,
        features,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        STEP: tl.constexpr,
        EACH: tl.constexpr,
        NEEDS_X: tl.constexpr,
        NEEDS_BLOCK: tl.constexpr,
        STAGES: tl.constexpr,
    ):
        i = tl.program_id(0)
        c = tl.arange(0, WIDTH)
        dtype = dz.dtype.element_ty
        square = (c < R)[:, None] & (c < R)[None, :]
        own = i * R * R + c[:, None] * R + c[None, :]
        d = tl.load(block + own, mask=square, other=0.0).to(dtype)
        first = tl.program_id(1) * EACH
        total = tl.zeros((WIDTH, WIDTH), dtype=tl.float32)
        for start in tl.range(first, tl.minimum(first + EACH, tokens), STEP, num_stages=STAGES):
            t = start + tl.arange(0, STEP)
            wide = t.to(tl.int64)[:, None]
            mask = (t < tokens)[:, None] & (c < R)[None, :]
            piece = tl.load(dz + wide * dz_stride + i * R + c[None, :], mask=mask, other=0.0).to(tl.float32)
            du = (piece + tl.load(dv + wide * R + c[None, :], mask=mask, other=0.0).to(tl.float32)).to(dtype)
            if NEEDS_X:
                back = piece + tl.dot(du, d)
                tl.store(dx + wide * features + i * R + c[None, :], back.to(dtype), mask=mask)
            if NEEDS_BLOCK:
                own_x = tl.load(x + wide * x_stride + i * R + c[None, :], mask=mask, other=0.0)
                total += tl.dot(tl.trans(du), own_x)
        if NEEDS_BLOCK:
            tl.atomic_add(dblock + own, total, mask=square, sem="relaxed")
