"""Whether two ways to compute a step give the same, but for rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ROUNDING = 0.05
"""In bfloat16 some 1 % of a gradient is rounding; what is wrong is mostly wrong as a whole."""


def same_step(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Compare steps, each given as its loss and its gradients, by the length of all gradients together."""
    (loss, *grads), (right, *exact) = found, expected
    apart = _length(torch._foreach_sub(list(grads), list(exact))) <= _ROUNDING * _length(exact)
    return bool(apart) and bool((loss - right).abs() <= _ROUNDING * right.abs())


def _length(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(tensors))).norm()
