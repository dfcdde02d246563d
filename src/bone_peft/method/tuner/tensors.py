"""The trained tensors of a layer, by adapter name, and their keys in the model and in files.

In a model the name of the adapter is a dotted part of its own, ``q_proj.bone_block.default.tensor``, as for PEFT's
other methods: programs look for ``.default.``. In files there is no name: ``q_proj.bone_block``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bone_peft.errors import BoneError

LEAF = "tensor"
"""Not "weight": FSDP's policy for PEFT would take the holder for a layer that is called."""


class _Holder(nn.Module):
    def __init__(self, tensor: nn.Parameter) -> None:
        super().__init__()
        self.register_parameter(LEAF, tensor)

    def extra_repr(self) -> str:
        tensor = self._parameters[LEAF]
        return "" if tensor is None else f"{tuple(tensor.shape)}, {tensor.dtype}"


class AdapterTensors(nn.ParameterDict):
    """An ``nn.ParameterDict`` that takes any adapter name, and keeps each parameter in a module of that name."""

    def __getitem__(self, name: str) -> nn.Parameter:
        return self._modules[name]._parameters[LEAF]  # type: ignore[union-attr, return-value]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
        if name in self._modules:
            self._modules[name].register_parameter(LEAF, parameter)  # type: ignore[union-attr]
        else:
            self._modules[name] = _Holder(parameter)
        self._keys[name] = None

    def __delitem__(self, name: str) -> None:
        del self._keys[name], self._modules[name]

    def holder(self, name: str) -> nn.Module:
        """The module that has the parameter of ``name`` to itself."""
        return self._modules[name]  # type: ignore[return-value]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Version 0.1, and PEFT 0.14 to 0.18, kept the parameter under the name of the adapter itself.
        for name in self:
            if f"{prefix}{name}" in state_dict:
                state_dict[f"{prefix}{name}.{LEAF}"] = state_dict.pop(f"{prefix}{name}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return ""


def file_keys(model: nn.Module, adapter_name: str) -> dict[str, str]:
    """The key in files of each tensor of an adapter, by its key in ``model.state_dict()``."""
    keys: dict[str, str] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, AdapterTensors) and adapter_name in module:
            key = module_name.replace("_fsdp_wrapped_module.", "")
            keys[f"{key}.{adapter_name}.{LEAF}"] = key.replace("_orig_mod.", "")
    return keys


def remove_adapter_name(key: str, adapter_name: str) -> str:
    """The key in files for a key of a model."""
    return key.removesuffix(f".{adapter_name}.{LEAF}")


def check_complete(
    keys: Mapping[str, str], found: Mapping[str, Any], known: Mapping[str, Any], adapter_name: str
) -> None:
    """Raise a ``BoneError`` if tensors of a file have no place in the model, or places are left without a tensor.

    Args:
        keys: as :func:`file_keys` gives them.
        found: the tensors of the file, by their keys there.
        known: everything that the model has, by its keys there.
        adapter_name: for the message.
    """
    prefix = "base_model.model."
    places = {key.removeprefix(prefix) for key in (*keys.values(), *known)}
    spare = [key for key in found if key.removeprefix(prefix) not in places]
    if spare:
        raise BoneError(
            f"{len(spare)} tensors have no place in adapter {adapter_name} of this model, such as {spare[0]}: use the "
            "base that it was trained on, and load it under a name that is not taken (or delete_adapter() first)."
        )
    given = {key.removeprefix(prefix) for key in found}
    missing = [key for key in keys.values() if key.removeprefix(prefix) not in given]
    if missing:
        raise BoneError(
            f"Nothing is there for {len(missing)} tensors of adapter {adapter_name}, such as {missing[0]}: the file is "
            "incomplete, or of an adapter with other target_modules."
        )
