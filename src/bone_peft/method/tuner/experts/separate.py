"""Adapters of separate experts, as models had them before Transformers 5, as those of the fused parameters."""

from __future__ import annotations

from collections.abc import Mapping
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
        The same by the names of this model, with an adapter for each expert, or for each part of each where two do not
        make one. Experts that are not all there are left as they are.

    Raises:
        BoneError: the adapters of two projections are of two sizes.
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
            if len({variant.sides(params)[2] for params in own}) > 1:
                names = " and ".join(places[0, part].rpartition(".")[2] for part in range(parts))
                raise BoneError(
                    f"{fused} has adapters of one size for {names}, and in the file they are of two: use Transformers "
                    "before 5, where they are two layers."
                )
            each.append(own)
        one = [variant.beside(own) for own in each]
        made = [params for params in one if params is not None]
        # One behind the other where some do not make one.
        made = made if len(made) == len(each) else [params for own in each for params in own]
        left[fused] = {key: torch.stack([params[key] for params in made]) for key in variant.parameters}
    return left
