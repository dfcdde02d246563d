"""A frozen layer, and the adapters that stand on it, as functions of ``x``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..variants import Below, Dropout, Params, Variant


@dataclass
class Frozen:
    """The base layer: a black box, whose weight is looked at only on demand."""

    call: Callable[[Tensor], Tensor]
    read_weight: Callable[[], Tensor]
    bias: Tensor | None

    def output(self, x: Tensor) -> Tensor:
        return self.call(x)

    def weight(self, dtype: torch.dtype) -> Tensor:
        return self.read_weight().to(dtype)


@dataclass
class Adapted:
    """One adapter on top of what is below it; itself something to stand on.

    So several active adapters compose in their order: Bone adds, Bat transforms the weight that is already
    transformed.
    """

    below: Below
    variant: type[Variant]
    params: Params
    dropout: Dropout | None

    @property
    def bias(self) -> Tensor | None:
        return self.below.bias

    def output(self, x: Tensor) -> Tensor:
        return self.variant.forward(x, self.params, self.below, self.dropout)

    def weight(self, dtype: torch.dtype) -> Tensor:
        weight = self.below.weight(dtype)
        params = {name: tensor.to(dtype) for name, tensor in self.params.items()}
        return weight + self.variant.delta_weight(params, weight)
