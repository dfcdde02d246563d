"""Tensors of adapters that have one more dimension in front: an adapter for each expert."""

from __future__ import annotations

from .variant import Params, Variant


def experts_of(variant: type[Variant], params: Params) -> int | None:
    """How many experts ``params`` are for; ``None`` if they are one adapter."""
    (name, shape), *_ = variant.shapes(1, 1, 1).items()
    tensor = params[name]
    return tensor.shape[0] if tensor.ndim == len(shape) + 1 else None


def of_expert(variant: type[Variant], params: Params, expert: int) -> Params:
    """The tensors of one of them, or the only ones."""
    if experts_of(variant, params) is None:
        return params
    return {name: tensor[expert] for name, tensor in params.items()}
