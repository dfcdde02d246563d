"""What RWKV-PEFT takes from ``rwkv-fla``, whose kernels need a GPU: RWKV-7's recurrence, token by token."""

from typing import Any

import torch
from torch import Tensor


def chunk_rwkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, scale: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """All of ``(batch, token, head, channel)``; the output has heads and channels in one, as its caller expects."""
    decay = torch.exp(-torch.exp(w))
    state = r.new_zeros(r.shape[0], *r.shape[2:], r.shape[-1])
    said = []
    for t in range(r.shape[1]):
        taken = torch.einsum("bhvk,bhk->bhv", state, a[:, t])
        state = state * decay[:, t, :, None]
        state = state + torch.einsum("bhv,bhk->bhvk", taken, b[:, t]) + torch.einsum("bhv,bhk->bhvk", v[:, t], k[:, t])
        said.append(torch.einsum("bhvk,bhk->bhv", state, r[:, t]))
    return scale * torch.stack(said, dim=1).flatten(2), state
