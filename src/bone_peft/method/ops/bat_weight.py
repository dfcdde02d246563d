"""Bat's weight, ``W'_oi = W_oi + W_oi B_o + B_o``, and the gradient of ``B`` from that of ``W'``.

``W`` seen as ``(out/r, r * in/r, r)`` times ``B (out/r, r, r)`` is one batched product: rows ``(a, i)`` of block row
``o`` lie next to each other, and nothing is permuted. Bound by memory: ``W`` is read once and ``W'`` written once.
"""

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


def bat_weight(weight: Tensor, block: Tensor) -> Tensor:
    """``W'``, rounded once.

    Args:
        weight: ``W (out, in)``, contiguous.
        block: ``B (out/r, r, r)``, contiguous, of any dtype.

    Returns:
        ``(out, in)`` in the dtype of ``weight``.
    """
    if not _kernel_takes(weight, block):
        return bat_weight_torch(weight, block)
    new = torch.empty_like(weight)
    _run(weight, block, None, new, None)
    return new


def bat_weight_backward(
    weight: Tensor, block: Tensor, dweight: Tensor, rebuild: bool = True
) -> tuple[Tensor | None, Tensor]:
    """``W'`` again, and ``dB_o = sum_i W_oi^T dW'_oi + dW'_oi``, from one pass over ``W``.

    Args:
        weight: ``W (out, in)``, contiguous.
        block: ``B (out/r, r, r)``, contiguous.
        dweight: the gradient of ``W' (out, in)``, contiguous, in the dtype of ``weight``.
        rebuild: whether ``W'`` is wanted.

    Returns:
        ``W' (out, in)`` in the dtype of ``weight``, and ``dB`` in that of ``block``, summed in float32.
    """
    if not _kernel_takes(weight, block):
        number, r, _ = block.shape
        wide = dweight.view(number, -1, r)
        product = torch.bmm(weight.reshape(number, -1, r).mT, wide)
        dblock = (product + wide.view(number, r, -1, r).sum(2)).to(block.dtype)
        return bat_weight_torch(weight, block) if rebuild else None, dblock
    new = torch.empty_like(weight) if rebuild else None
    dblock = torch.zeros(block.shape, dtype=torch.float32, device=block.device)
    _run(weight, block, dweight, new, dblock)
    return new, dblock.to(block.dtype)


def bat_weight_torch(weight: Tensor, block: Tensor) -> Tensor:
    """The same in torch operations."""
    number, r, _ = block.shape
    block = block.to(weight.dtype)
    flat = weight.reshape(number, -1, r)
    new = torch.baddbmm(flat, flat, block)
    new.view(number, r, -1, r).add_(block[:, :, None, :])
    return new.view(weight.shape)


def _kernel_takes(weight: Tensor, block: Tensor) -> bool:
    r = block.shape[-1]
    # Rounded up to a power of two, larger blocks no longer fit into registers.
    return use_triton(weight, r) and r <= 128


def _run(weight: Tensor, block: Tensor, dweight: Tensor | None, new: Tensor | None, dblock: Tensor | None) -> None:
    number, r, _ = block.shape
    blocks = weight.shape[1] // r
    width = power_of_two(r)
    # Seen to be fastest on an H100: 512 rows a program, or 1024 if it sums a gradient as well.
    step = 64
    steps = triton.cdiv(blocks, step)
    each = max(1, (512 if dblock is None else 1024) // (step * steps))
    launch(
        _bat_weight,
        (triton.cdiv(r, each), number),
        (
            weight,
            block,
            weight if dweight is None else dweight,
            weight if new is None else new,
            block if dblock is None else dblock,
        ),
        (blocks,),
        (r, width, step, each, new is not None, dblock is not None, 2 if width > 64 else 4 if dblock is None else 3),
        num_warps=4 if width <= 64 else 8,
    )


if triton is not None:

    @triton.jit
    def _bat_weight(
        weight,
        block,
        dweight,
        new,
        dblock,
        blocks,
        R: tl.constexpr,
        WIDTH: tl.constexpr,
        STEP: tl.constexpr,
        EACH: tl.constexpr,
        BUILD: tl.constexpr,
        GRADIENT: tl.constexpr,
        STAGES: tl.constexpr,
    ):
        # Row a of block row o is `blocks` rows of r numbers, next to each other; a program takes EACH of these.
        o = tl.program_id(1)
        c = tl.arange(0, WIDTH)
        dtype = weight.dtype.element_ty
        square = (c < R)[:, None] & (c < R)[None, :]
        own = o * R * R + c[:, None] * R + c[None, :]
        if BUILD:
            b = tl.load(block + own, mask=square, other=0.0).to(dtype)
        base = o.to(tl.int64) * R * R * blocks
        first = tl.program_id(0) * EACH
        steps = tl.cdiv(blocks, STEP)
        total = tl.zeros((WIDTH, WIDTH), dtype=tl.float32)
        for number in tl.range(0, tl.minimum(EACH, R - first) * steps, num_stages=STAGES):
            a = first + number // steps
            i = (number % steps) * STEP + tl.arange(0, STEP)
            mask = (i < blocks)[:, None] & (c < R)[None, :]
            place = base + a * R * blocks + i[:, None] * R + c[None, :]
            w = tl.load(weight + place, mask=mask, other=0.0)
            if BUILD:
                added = tl.load(block + o * R * R + a * R + c, mask=c < R, other=0.0).to(tl.float32)
                changed = tl.dot(w, b) + w.to(tl.float32) + added[None, :]
                tl.store(new + place, changed.to(dtype), mask=mask)
            if GRADIENT:
                dw = tl.load(dweight + place, mask=mask, other=0.0)
                total = tl.dot(tl.trans(w), dw, total)
                chosen = (c[:, None] == a) & (i < blocks)[None, :]
                total = tl.dot(chosen.to(dtype), dw, total)
        if GRADIENT:
            tl.atomic_add(dblock + own, total, mask=square, sem="relaxed")
