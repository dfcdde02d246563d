"""LoRA, which is what every serving engine takes. Bottleneck is the same thing by other names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.io.names import brief
from bone_peft.method.tuner.patterns import pattern_key
from bone_peft.method.variants import VARIANTS, Params, experts_of

from .. import peft_folder
from ..adapter import Adapter
from ..format import Format

_NAMES = {"lora_A.weight": "bone_down", "lora_B.weight": "bone_up"}
_BIAS = {"lora_only": "bone_only"}
# Options of LoRA that make it something else than B A.
_FOREIGN = (
    "use_dora",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "lora_bias",
    "use_bdlora",
    "megatron_config",
)


def read(path: Path) -> Adapter:
    """LoRA as Bottleneck, with the scaling in ``bone_up``; as Bone, where it was Bone before."""
    config, tensors = peft_folder.read_folder(path)
    foreign = next((name for name in _FOREIGN if config.get(name)), None)
    if foreign is not None:
        raise BoneError(f"{path} is a LoRA with {foreign}, which has no exact form in Bone.")
    layers, whole = peft_folder.split(tensors, _NAMES)
    odd = next((name for name in whole if ".lora_" in name), None)
    if odd is not None:
        raise BoneError(f"{path} holds {odd}, and only LoRA of linear layers can be read.")
    bias = config.get("bias", "none")
    options: dict[str, Any] = {"bottleneck_size": 1, "bottleneck_dropout": config.get("lora_dropout", 0.0)}
    options["bias"] = _BIAS.get(bias, bias) if isinstance(bias, str) else bias
    adapter = Adapter(peft_folder.bone_config(config, path, **options), layers, whole).checked(str(path))
    scaled: dict[str, Params] = {}
    for module, params in layers.items():
        r, scaling = _scaling(config, module, path)
        if r != adapter.r(module):
            raise BoneError(f"{path} has rank {adapter.r(module)} for {module}, and its config says {r}.")
        scaled[module] = params if scaling == 1 else adapter.variant.scaled(params, scaling)
    bone = _as_bone(scaled)
    if bone is None:
        return _sized(adapter.config, scaled, whole)
    options = {"bone_dropout": adapter.config.bottleneck_dropout, "bias": adapter.config.bias}
    return _sized(peft_folder.bone_config(config, path, **options), bone, whole)


def _sized(config: Any, layers: dict[str, Params], whole: dict[str, Tensor]) -> Adapter:
    adapter = Adapter(config, layers, whole)
    config = peft_folder.with_sizes(config, {module: adapter.r(module) for module in layers})
    return peft_folder.checked(Adapter(config, layers, whole), Path("the adapter"))


def _scaling(config: Mapping[str, Any], module: str, path: Path) -> tuple[int, float]:
    """``(r, scaling)`` of a module."""
    try:
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        r = ranks.get(pattern_key(ranks, module), config.get("r", 8))
        alpha = alphas.get(pattern_key(alphas, module), config.get("lora_alpha", 8))
        return r, alpha / (math.sqrt(r) if config.get("use_rslora") else r)
    except (TypeError, ValueError, AttributeError, ArithmeticError):
        raise BoneError(f"{path / peft_folder.CONFIG} has an r or lora_alpha that is no number.") from None


def _as_bone(layers: Mapping[str, Params]) -> dict[str, Params] | None:
    """The Bone blocks that these factors were made from, or ``None`` if they were not."""
    bone = VARIANTS["bone"]
    blocks: dict[str, Params] = {}
    for module, params in layers.items():
        block = {"bone_block": params["bone_up"].T.contiguous()}
        down, _ = bone.lora_factors(block, params["bone_down"].shape[1]) or (None, None)
        if down is None or not torch.equal(down, params["bone_down"]):
            return None
        blocks[module] = block
    return blocks


def write(adapter: Adapter, path: Path) -> None:
    if adapter.variant.name != "bottleneck":
        raise BoneError(f"{adapter.variant.name} has to be factored before it is LoRA: use bone_peft.convert().")
    sizes = {module: adapter.r(module) for module in adapter.layers}
    sized = peft_folder.with_sizes(adapter.config, sizes)
    r = sized.bottleneck_size
    bias = {new: old for old, new in _BIAS.items()}.get(adapter.config.bias, adapter.config.bias)
    # Scaling is lora_alpha / r, and everything is in the factors already: they are the same everywhere.
    options: dict[str, Any] = {"r": r, "lora_alpha": r, "bias": bias}
    options |= {
        "rank_pattern": dict(sized.rank_pattern or {}),
        "alpha_pattern": dict(sized.rank_pattern or {}),
    }
    options |= peft_folder.common_options(adapter.config)
    if any(experts_of(adapter.variant, params) is not None for params in adapter.layers.values()):
        if not adapter.config.target_parameters:
            raise BoneError("This adapter has experts, whose layout the base tells: use bone_peft.convert() with it.")
        options["target_parameters"] = adapter.config.target_parameters
    try:
        config = LoraConfig(lora_dropout=adapter.config.bottleneck_dropout or 0.0, **options)
    except ValueError as error:
        raise BoneError(f"PEFT's LoRA cannot have the options of this adapter: {brief(error)}") from None
    names = {ours: theirs for theirs, ours in _NAMES.items()}
    layers = _of_experts(adapter)
    named = [(f"{module}.{names[name]}", t) for module, params in layers.items() for name, t in params.items()]
    peft_folder.write_folder(path, config, named, adapter.whole)


def _of_experts(adapter: Adapter) -> dict[str, Params]:
    """The layers, with the factors of experts as ``target_parameters`` names and lays them.

    The wrappers of a module's parameters stand one around the other, the last one outside.
    """
    layers = dict(adapter.layers)
    modules: dict[str, list[str]] = {}
    for name, params in layers.items():
        if experts_of(adapter.variant, params) is not None:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    for module, names in modules.items():
        for inside, name in enumerate(sorted(names)):
            params = layers.pop(name)
            down, up = params["bone_down"], params["bone_up"]
            layers[module + inside * ".base_layer"] = {
                "bone_down": down.flatten(0, 1),
                "bone_up": up.permute(1, 2, 0).flatten(1, 2),
            }
    return layers


FORMAT = Format("lora", "PEFT LoRA folder", partial(peft_folder.recognizes, peft_type="LORA"), read, write)
