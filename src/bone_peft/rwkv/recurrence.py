"""The time mixing of RWKV-7 (arXiv 2503.14456), as matrix products over chunks. Tensors in, tensors out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16
"""Tokens of a chunk. RWKV-7 decays by no less than ``exp(-exp(-0.5))`` a token, so that over 16 of them the products
below keep to a range of ``1e4``, which float32 holds without loss."""


def recurrence(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``S_t = S_{t-1} (diag(w_t) + a_t b_t^T) + v_t k_t^T`` and ``y_t = S_t r_t``, for all ``t``.

    Within a chunk, with ``W_t`` the product of its decays up to ``t``, the state is ``T_t diag(W_t)``, and ``T`` only
    has rank-one terms added to it. These depend on each other through one triangular matrix. So a chunk is an affine
    map of the state, ``S^T <- A S^T + B``, and only these maps are applied one after the other.

    Args:
        r, w, k, a, b: ``(batch, time, heads, K)``; ``w`` is the decay itself, in ``(0, 1)``.
        v: ``(batch, time, heads, V)``.
        state: ``(batch, heads, K, V)``, float32: ``S^T`` before the first token.
        mask: ``(batch, time)`` bool. At a false position the output is zero and the state stays.

    Returns:
        ``y (batch, time, heads, V)`` in the dtype of ``v``, and the state after the last token.
    """
    with torch.autocast(r.device.type, enabled=False):
        return _recurrence(r, w, k, v, a, b, state, mask)


def _recurrence(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, time, heads, width = r.shape
    dtype = v.dtype
    if mask is not None:
        here = mask[..., None, None]
        w, k, b = w.where(here, 1), k.where(here, 0), b.where(here, 0)
    chunk = min(CHUNK, time)
    r, k, v, a, b = (_chunks(x, chunk) for x in (r, k, v, a, b))
    w = _chunks(w, chunk, fill=1)

    total = w.log().cumsum(-2).exp()
    last = total[..., -1, :, None]
    r, a, k, b = r * total, a * total / w, k / total, b / total
    inverse = _inverse((a @ b.mT).tril(-1))
    p, q = inverse @ a, inverse @ ((a @ k.mT).tril(-1) @ v)
    rb, rk = (r @ b.mT).tril(), (r @ k.mT).tril()
    factor = last * (torch.eye(width, dtype=p.dtype, device=p.device) + b.mT @ p)
    added = last * (b.mT @ q + k.mT @ v)

    states = []
    state = state.to(factor.dtype)
    for index in range(factor.shape[2]):
        states.append(state)
        state = factor[:, :, index] @ state + added[:, :, index]
    y = (r + rb @ p) @ torch.stack(states, 2) + rb @ q + rk @ v
    y = y.reshape(batch, heads, -1, v.shape[-1])[:, :, :time].transpose(1, 2).to(dtype)
    return (y if mask is None else y.where(here, 0)), state


def _inverse(x: Tensor) -> Tensor:
    """``(I - x)^-1`` of a strictly lower triangular ``x (..., n, n)``, as the finite product of ``I + x^(2^i)``.

    Matrix products alone: for many small matrices that is faster than to solve for each.
    """
    inverse = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device) + x
    for _ in range(1, (x.shape[-1] - 1).bit_length()):
        x = x @ x
        inverse = inverse + inverse @ x
    return inverse


def _chunks(x: Tensor, size: int, fill: float = 0) -> Tensor:
    """``(batch, time, heads, D)`` to ``(batch, heads, chunks, size, D)``, in float32 at least, filled up at the end."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(1, 2)
    x = F.pad(x, (0, 0, 0, -x.shape[2] % size), value=fill)
    return x.unflatten(2, (-1, size))
