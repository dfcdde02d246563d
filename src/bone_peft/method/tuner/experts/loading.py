"""The tensors of a file, where it has experts in another form than the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bone_peft.errors import naming

from . import separate
from .experts_layer import BoneExperts

_PREFIX = "base_model.model."


def joined(model: Any, config: Any, keys: Mapping[str, str], state_dict: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a file with those of separate experts joined, if the model has them in one."""
    known = {key.removeprefix(_PREFIX) for key in keys.values()}
    endings = config.variant.parameters
    layers: dict[str, dict[str, Any]] = {}
    for key, tensor in state_dict.items():
        name, _, ending = key.removeprefix(_PREFIX).rpartition(".")
        if ending in endings and f"{name}.{ending}" not in known:
            layers.setdefault(name, {})[ending] = tensor
    layers = {name: params for name, params in layers.items() if len(params) == len(endings)}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    new = separate.joined(base, config.variant, layers) if layers else {}
    gone = {f"{name}.{ending}" for name in layers if name not in new for ending in endings}
    rest = {key: value for key, value in state_dict.items() if key.removeprefix(_PREFIX) not in gone}
    return rest | {f"{_PREFIX}{name}.{k}": t for name in new if name not in layers for k, t in new[name].items()}


def fit(model: nn.Module, adapter_name: str, state_dict: Mapping[str, Any]) -> None:
    """Have layers of experts make room for adapters of each part."""
    found = {key.removeprefix(_PREFIX): tensor for key, tensor in state_dict.items()}
    for name, layer in model.named_modules():
        if isinstance(layer, BoneExperts) and adapter_name in layer.bone_variant:
            path = name.removeprefix(_PREFIX)
            names = layer.bone_variant[adapter_name].parameters
            params = {name: found[f"{path}.{name}"] for name in names if f"{path}.{name}" in found}
            if len(params) == len(names):
                with naming(path):
                    layer.fit(adapter_name, params)
