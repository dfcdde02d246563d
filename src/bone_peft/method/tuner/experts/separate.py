"""Adapters of separate experts, as models had them before Transformers 5, as those of the fused parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bone_peft.errors import BoneError

from ...compat.checkpoint_names import expert_places
from ...variants import Params, Variant


def joined(model: Any, variant: type[Variant], layers: Mapping[str, Params]) -> dict[str, Params]:
    """The layers of an adapter, with those of separate experts joined where the model has them in one.

    Args:
        model: has the experts fused.
        variant: of the adapter.
        layers: the tensors of each module, by its name in the older model, or in this one.

    Returns:
        The same by the names of this model. Experts that are not all there are left as they are.

    Raises:
        BoneError: the adapters of two projections do not make one.
    """
    found: dict[str, dict[tuple[int, int], str]] = {}
    sizes: dict[str, int] = {}
    for name, (fused, expert, part, parts) in expert_places(model, layers).items():
        found.setdefault(fused, {})[expert, part] = name
        sizes[fused] = parts
    left = dict(layers)
    for fused, places in found.items():
        parts = sizes[fused]
        experts = 1 + max(expert for expert, _ in places)
        if len(places) < experts * parts:
            continue
        each = []
        for expert in range(experts):
            own = [left.pop(places[expert, part]) for part in range(parts)]
            params = variant.beside(own) if _have_one_r(variant, own) else None
            if params is None:
                names = " and ".join(places[0, part].rpartition(".")[2] for part in range(parts))
                raise BoneError(
                    f"{fused} has one {variant.name} adapter for {names}, and in the file they have two that are not "
                    "the same: use Transformers before 5, where they are two layers."
                )
            each.append(params)
        left[fused] = {key: torch.stack([params[key] for params in each]) for key in variant.parameters}
    return left


def _have_one_r(variant: type[Variant], layers: Sequence[Params]) -> bool:
    return len({variant.sides(params)[2] for params in layers}) == 1
