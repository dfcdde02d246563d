"""Factors of experts as PEFT's ``target_parameters`` has them: together, with the outputs in the model's own order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from bone_peft.errors import BoneError
from bone_peft.method.tuner.experts.fused import FusedLinear
from bone_peft.method.variants import Params, experts_of

from ..adapters import Adapter


class Base(Protocol):
    """What is asked of a base."""

    def fused(self, module: str) -> FusedLinear | None: ...


def in_parameters(adapter: Adapter, base: Base) -> Adapter:
    """The same Bottleneck, with factors for each expert in the order of the model's own outputs.

    Raises:
        BoneError: it has no experts, or two adapters for each.
    """
    layers: dict[str, Params] = {}
    parameters: dict[str, None] = {}
    for module, params in adapter.layers.items():
        fused = base.fused(module)
        layers[module] = params
        if fused is None:
            continue
        number = experts_of(adapter.variant, params)
        if number not in (None, fused.experts):
            raise BoneError(
                f"{module} has an adapter for each of {' and '.join(fused.parts)}, and a LoRA of target_parameters has "
                "one: convert without fused."
            )
        down, up = (
            tensor.expand(fused.experts, *tensor.shape) if number is None else tensor
            for tensor in (params["bone_down"], params["bone_up"])
        )
        layers[module] = {"bone_down": down, "bone_up": fused.as_kept(up.mT).mT.contiguous()}
        parameters[".".join(module.split(".")[-3:])] = None
    if not parameters:
        raise BoneError("fused is for adapters of experts, and this one has none: leave it out.")
    others = {module.rpartition(".")[2] for module in layers if base.fused(module) is None}
    # PEFT drops nothing before a parameter, and puts the wrapper of gate and up inside that of down.
    changes: dict[str, Any] = {"target_modules": sorted(others), "bottleneck_dropout": 0.0, "experts": "each"}
    config = replace(adapter.config, **changes, target_parameters=sorted(parameters, reverse=True))
    return replace(adapter, config=config, layers=layers)
