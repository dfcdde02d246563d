"""Adapters that are in a model rather than in a file."""

from __future__ import annotations

from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.method import BoneConfig, BoneLayer
from bone_peft.method.tuner.experts.fused import FusedLinear
from bone_peft.method.tuner.sharded import whole
from bone_peft.method.variants import Params, parameter_names

from ..adapters import Adapter
from ..adapters.peft_folder import PREFIX, split
from ..checkpoints.checkpoint import Held


def adapter_of(model: PeftModel, adapter_name: str = "default") -> Adapter:
    """The adapter of a live model, as a value of its own.

    Raises:
        BoneError: no such adapter, or not one of Bone.
    """
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, BoneConfig):
        raise BoneError(f"The model has no Bone adapter {adapter_name!r}: is it a PeftModel with a BoneConfig?")
    # Files know of no scale, so it goes into the tensors.
    layers: dict[str, Params] = {
        name: {key: tensor.detach().cpu().clone() for key, tensor in layer._scaled(adapter_name).items()}
        for name, layer in LiveBase(model).layers.items()
        if adapter_name in layer.bone_variant
    }
    tensors: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=adapter_name)
    own = {name.removeprefix(PREFIX): whole(tensor).detach().cpu().clone() for name, tensor in tensors.items()}
    _, others = split(own, {name: name for name in parameter_names()})
    return Adapter(config, layers, others).checked("the model")


class LiveBase:
    """The frozen layers under the adapters of a live model."""

    def __init__(self, model: Any) -> None:
        self.model = model.get_base_model()
        names = ((name.removeprefix(PREFIX), module) for name, module in model.named_modules())
        self.layers = {name: module for name, module in names if isinstance(module, BoneLayer)}

    @property
    def tensors(self) -> dict[str, Held]:
        held = {}
        for name, layer in self.layers.items():
            if layer.merged:
                raise BoneError("The model's adapters are merged: call unmerge_adapter() first.")
            held[f"{name}.weight"] = Held(whole(layer.get_base_weight()).detach().cpu())
        return held

    def fused(self, module: str) -> FusedLinear | None:
        base: Any = self.layers[module].get_base_layer()
        return base if isinstance(base, FusedLinear) else None

    def shape_of(self, module: str) -> tuple[int, ...]:
        layer, fused = self.layers[module], self.fused(module)
        experts = () if fused is None else (fused.experts,)
        return *experts, layer.out_features, layer.in_features

    def transposed(self, module: str) -> bool:
        return self.layers[module].fan_in_fan_out
