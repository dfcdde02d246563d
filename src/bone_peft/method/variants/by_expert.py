"""Tensors of adapters that have one more dimension in front: an adapter for each expert.

Where the parts of a projection, gate and up, have adapters that do not make one, an expert has one for each part, one
behind the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .variant import Params, Variant


def experts_of(variant: type[Variant], params: Params) -> int | None:
    """How many experts, or parts of them, ``params`` are for; ``None`` if they are one adapter."""
    (name, shape), *_ = variant.shapes(1, 1, 1).items()
    tensor = params[name]
    return tensor.shape[0] if tensor.ndim == len(shape) + 1 else None


def parts_of(variant: type[Variant], params: Params, experts: int) -> int:
    """How many adapters each of ``experts`` has."""
    return (experts_of(variant, params) or experts) // experts


def of_expert(variant: type[Variant], params: Params, expert: int) -> Params:
    """The tensors of one of them, or the only ones."""
    if experts_of(variant, params) is None:
        return params
    return {name: tensor[expert] for name, tensor in params.items()}


def of_part(
    variant: type[Variant], params: Params, out_features: int, expert: int, experts: int, part: int, parts: int
) -> Params:
    """The tensors of a part of an expert's projection.

    Args:
        variant: of the adapter.
        params: its tensors, for all experts.
        out_features: of the whole projection.
        expert: which.
        experts: how many there are.
        part: which.
        parts: how many there are; as many as the adapter has, if it has several.
    """
    if parts_of(variant, params, experts) == parts:
        return of_expert(variant, params, expert * parts + part)
    step = out_features // parts
    return variant.rows(of_expert(variant, params, expert), part * step, (part + 1) * step)


def delta_weight_of_expert(variant: type[Variant], params: Params, weight: Tensor, expert: int, experts: int) -> Tensor:
    """``dW (out, in)`` of an expert with ``weight (out, in)``."""
    parts = parts_of(variant, params, experts)
    own = (of_expert(variant, params, expert * parts + part) for part in range(parts))
    deltas = [variant.delta_weight(*each) for each in zip(own, weight.chunk(parts), strict=True)]
    return deltas[0] if parts == 1 else torch.cat(deltas)
