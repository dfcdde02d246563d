"""``add_weighted_adapter``: one adapter out of several, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner

from bone_peft.errors import BoneError

from .config import BoneConfig
from .layer import BoneLayer


def add_weighted_adapter(
    model: BaseTuner,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "linear",
) -> None:
    """Add the adapter whose ``dW`` is ``sum_k weights[k] * dW_k``, in every layer, without approximation.

    Args:
        model: holds the adapters.
        adapters: names of adapters of one variant and one shape.
        weights: a factor for each. The scale that an adapter has in a layer counts as well.
        adapter_name: name of the new adapter. It is added inactive and frozen.
        combination_type: ``"linear"``, the only one: it is exact.

    Raises:
        BoneError: if an adapter is unknown, the name is taken, or the adapters differ in variant or shape.
    """
    configs = _checked(model, adapters, weights, adapter_name, combination_type)
    model.peft_config[adapter_name] = _combined_config(configs)
    try:
        model.inject_adapter(model.model, adapter_name)
    except Exception:
        del model.peft_config[adapter_name]
        raise
    model.set_requires_grad(adapter_name, requires_grad=False)
    for layer in model.model.modules():
        if isinstance(layer, BoneLayer) and adapter_name in layer.bone_variant:
            with torch.no_grad():
                combined = layer.combined(adapters, weights)
            layer.fit(adapter_name, combined)
            for name, tensor in combined.items():
                getattr(layer, name)[adapter_name].data = tensor


def _checked(
    model: BaseTuner,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str,
) -> list[BoneConfig]:
    if combination_type != "linear":
        raise BoneError(f"combination_type={combination_type!r} is not there for Bone: use 'linear', which is exact.")
    if len(adapters) != len(weights) or not adapters:
        raise BoneError(
            f"There have to be as many weights as adapters: {len(weights)} weights, {len(adapters)} adapters."
        )
    unknown = [name for name in adapters if name not in model.peft_config]
    if unknown:
        raise BoneError(f"There is no adapter {', '.join(unknown)}: the model has {', '.join(model.peft_config)}.")
    if adapter_name in model.peft_config:
        raise BoneError(f"There is an adapter {adapter_name} already: choose another name.")
    for key, layer in model.model.named_modules():
        if isinstance(layer, BoneLayer):
            kinds = {(layer.bone_variant.get(name), layer.bone_r.get(name)) for name in adapters}
            if len(kinds) > 1:
                raise BoneError(
                    f"{', '.join(adapters)} differ in variant, r or target_modules at {key}: they do not add."
                )
    configs: dict[str, Any] = model.peft_config
    return [configs[name] for name in adapters]


def _combined_config(configs: list[BoneConfig]) -> BoneConfig:
    """The config of adapters that have the same size in every layer, for tensors of the combined size."""
    first = configs[0]
    variant = first.variant

    def combined(base_size: int | None = None) -> int:
        return variant.combined_size([first.layer_size(base_size)] * len(configs))

    changes: dict[str, Any] = {variant.size_field: combined(), variant.dropout_field: 0.0}
    if "bottleneck_alpha" in variant.options:
        changes["bottleneck_alpha"] = 1.0
    pattern = {key: combined(value) for key, value in first.rank_pattern.items()}
    return replace(first, rank_pattern=pattern, **changes)
