"""Adapters of fused experts, as one of each expert's own projections: what most other programs read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from bone_peft.errors import BoneError
from bone_peft.method.compat.checkpoint_names import separate_names
from bone_peft.method.tuner.experts.fused import FusedLinear
from bone_peft.method.variants import Params, experts_of, of_part

from ..adapters import Adapter


class Base(Protocol):
    """What is asked of a base."""

    @property
    def model(self) -> Any: ...

    def fused(self, module: str) -> FusedLinear | None: ...


def separated(adapter: Adapter, base: Base | None) -> Adapter:
    """The same changes, expert by expert and part by part, by the names that the model's checkpoints have.

    Raises:
        BoneError: there are such experts, and no base to tell their names.
    """
    layers: dict[str, Params] = {}
    for module, params in adapter.layers.items():
        fused = None if base is None else base.fused(module)
        if fused is None or base is None:
            if experts_of(adapter.variant, params) is not None:
                raise BoneError(f"{module} is of several experts, whose names the base tells: name it with --base.")
            layers[module] = params
            continue
        names = separate_names(base.model, module, fused.parts)
        for expert in range(fused.experts):
            for part, name in enumerate(names):
                own = of_part(adapter.variant, params, fused.out_features, expert, fused.experts, part, len(names))
                layers[name.format(expert)] = {key: tensor.clone() for key, tensor in own.items()}  # Files share none.
    targets = adapter.config.target_modules
    if layers.keys() != adapter.layers.keys() and not isinstance(targets, str):
        targets = sorted({name.rpartition(".")[2] for name in layers})
    config = replace(adapter.config, target_modules=targets, target_parameters=None, experts="each")
    return replace(adapter, config=config, layers=layers)
