"""The time mixing of RWKV-6 (arXiv 2404.05892), as matrix products over chunks. Tensors in, tensors out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16
"""Tokens of a chunk: within one, each pair of tokens has a product of decays of its own for each channel."""


def recurrence(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``y_t = r_t (S_{t-1} + diag(u) k_t^T v_t)`` and ``S_t = diag(exp(w_t)) S_{t-1} + k_t^T v_t``, for all ``t``.

    RWKV-6 may forget a channel within one token, so nothing is divided by a decay: all factors are products of decays
    from a later token back to an earlier one, which are at most 1.

    Args:
        r, w, k: ``(batch, time, heads, K)``; ``w`` is the logarithm of the decay, below zero.
        v: ``(batch, time, heads, V)``.
        u: ``(heads, K)``, what the token itself counts.
        state: ``(batch, heads, K, V)``, float32: ``S`` before the first token.
        mask: ``(batch, time)`` bool. At a false position the output is zero and the state stays.

    Returns:
        ``y (batch, time, heads, V)`` in the dtype of ``v``, and the state after the last token.
    """
    with torch.autocast(r.device.type, enabled=False):
        return _recurrence(r, w, k, v, u, state, mask)


def _recurrence(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, state: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, time, heads, _ = r.shape
    dtype = v.dtype
    if mask is not None:
        here = mask[..., None, None]
        w, k = w.where(here, 0), k.where(here, 0)
    r, w, k, v = (_chunks(x, min(CHUNK, time)) for x in (r, w, k, v))

    # Sums of logarithms, each on its own: one that forgets all is so large that differences would lose the others.
    before = F.pad(w.cumsum(-2)[..., :-1, :], (0, 0, 1, 0))
    after = F.pad(w.flip(-2).cumsum(-2).flip(-2)[..., 1:, :], (0, 0, 0, 1))
    later = torch.ones(w.shape[-2], w.shape[-2], dtype=torch.bool, device=w.device).tril(-1)
    between = F.pad(w[..., :, None, :].where(later[..., None], 0).cumsum(-3)[..., :-1, :, :], (0, 0, 0, 0, 1, 0))
    within = torch.einsum("...tk,...sk,...tsk->...ts", r, k, between.exp()).tril(-1)
    own = (r * u.to(r.dtype)[:, None, None, :] * k).sum(-1, keepdim=True)
    added = (k * after.exp()).mT @ v
    kept = w.sum(-2, keepdim=True).mT.exp()

    states = []
    state = state.to(added.dtype)
    for index in range(added.shape[2]):
        states.append(state)
        state = kept[:, :, index] * state + added[:, :, index]
    y = (r * before.exp()) @ torch.stack(states, 2) + within @ v + own * v
    y = y.reshape(batch, heads, -1, v.shape[-1])[:, :, :time].transpose(1, 2).to(dtype)
    return (y if mask is None else y.where(here, 0)), state


def _chunks(x: Tensor, size: int) -> Tensor:
    """``(batch, time, heads, D)`` to ``(batch, heads, chunks, size, D)``, in float32 at least, zeros at the end."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(1, 2)
    x = F.pad(x, (0, 0, 0, -x.shape[2] % size))
    return x.unflatten(2, (-1, size))
