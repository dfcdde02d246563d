"""What RWKV's layers mix each token with: the one before it. Tensors in, tensors out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def token_shift(x: Tensor, previous: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """For each position the last unmasked ``x`` before it.

    Args:
        x: ``(batch, time, C)``.
        previous: ``(batch, C)``, what stands before the first.
        mask: ``(batch, time)`` bool, false for padding.

    Returns:
        ``(batch, time, C)``, and the last unmasked ``x``, ``(batch, C)``.
    """
    known = torch.cat((previous.unsqueeze(1), x), 1)
    if hides_nothing(mask):
        return known[:, :-1], x[:, -1]
    place = torch.arange(1, x.shape[1] + 1, device=x.device).where(mask, 0).cummax(1).values
    before = F.pad(place, (1, 0))[:, :-1]
    return _pick(known, before), _pick(known, place[:, -1:]).squeeze(1)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def all_there(batch: int, time: int, device: torch.device) -> Tensor:
    """The mask of a batch without padding: one value for all places."""
    return torch.ones((), dtype=torch.bool, device=device).expand(batch, time)


def hides_nothing(mask: Tensor) -> bool:
    """Whether a mask is one of :func:`all_there`, without asking the GPU for its values. Masks have no other use for
    one value at all places."""
    return mask.stride() == (0, 0)
