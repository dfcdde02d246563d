"""PEFT < 0.21 picks the tensors of an adapter by their prefix; from 0.21 on it asks the method which they are.

Here the older ones are made to ask as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import RLock
from typing import Any

import torch
from peft import mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import save_and_load
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from .undoing import set_attribute, set_entry


def ask_the_method(undo: ExitStack) -> None:
    """Have PEFT's functions for state dicts go by the classmethods that PEFT 0.21 calls, where a method has them."""
    if hasattr(BaseTuner, "_get_adapter_state_dict"):
        return
    for name, make in (("get_peft_model_state_dict", _getter), ("set_peft_model_state_dict", _setter)):
        original = getattr(save_and_load, name)
        new = make(original)
        # Others have imported it by name.
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(name) is original:
                set_attribute(undo, module, name, new)


def trained_biases(model: nn.Module, state_dict: dict[str, Any], bias: str) -> dict[str, Any]:
    """The biases that are trained with an adapter. PEFT 0.21's ``_get_learnable_bias_state_dict``."""
    if bias == "none":
        return {}
    if bias == "all":
        return {key: value for key, value in state_dict.items() if key.rpartition(".")[2] == "bias"}
    keys = [f"{name}.base_layer.bias" for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    keys = [key.removeprefix("_fsdp_wrapped_module.") for key in keys]
    return {key: state_dict[key] for key in keys if key in state_dict}


def _method_of(config: Any) -> Any:
    """The class that is to be asked, if any. A config of another class than the one that is known is PEFT's own."""
    known = mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(config.peft_type)
    method = mapping.PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    return method if type(config) is known and hasattr(method, "_get_adapter_state_dict") else None


def _widen(model: nn.Module, stored: dict[str, Tensor]) -> None:
    """Keep float32 float32: PEFT < 0.19 gives a second adapter its base's dtype, and float32 after it was loaded."""
    for name, parameter in model.named_parameters():
        if name in stored:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, stored[name].dtype))


_one_at_a_time = RLock()


@contextmanager
def _no_prefix(config: Any) -> Iterator[None]:
    """Nothing is picked, and no name is put in."""
    with _one_at_a_time, ExitStack() as undo:
        set_entry(undo, mapping.PEFT_TYPE_TO_PREFIX_MAPPING, config.peft_type, "\0")
        yield


def _getter(original: Any) -> Any:
    @wraps(original)
    def get_peft_model_state_dict(
        model: Any,
        state_dict: dict[str, Any] | None = None,
        adapter_name: str = "default",
        unwrap_compiled: bool = False,
        save_embedding_layers: Any = "auto",
    ) -> dict[str, Tensor]:
        if unwrap_compiled:
            model = getattr(model, "_orig_mod", model)
        config = model.peft_config[adapter_name]
        method = _method_of(config)
        if method is None:
            return original(model, state_dict, adapter_name, save_embedding_layers=save_embedding_layers)
        if state_dict is None:
            state_dict = model.state_dict()
        with _no_prefix(config):
            rest = original(model, state_dict, adapter_name, save_embedding_layers=save_embedding_layers)
        own = method._get_adapter_state_dict(model, config, adapter_name, dict(state_dict), [])
        own = {method._remove_adapter_name_from_key(key, adapter_name): value for key, value in own.items()}
        return {**own, **rest}

    return get_peft_model_state_dict


def _setter(original: Any) -> Any:
    @wraps(original)
    def set_peft_model_state_dict(
        model: Any, peft_model_state_dict: dict[str, Tensor], adapter_name: str = "default", *args: Any, **kwargs: Any
    ) -> Any:
        config = model.peft_config[adapter_name]
        method = _method_of(config)
        if method is None:
            return original(model, peft_model_state_dict, adapter_name, *args, **kwargs)
        # What PEFT finds the places of itself.
        others = {
            f"{name.removeprefix('_fsdp_wrapped_module.')}.{key}"
            for name, module in model.named_modules()
            if isinstance(module, AuxiliaryTrainingWrapper)
            for key in module.adapter_state_dict_load_map(adapter_name)
        }
        own = {key: value for key, value in peft_model_state_dict.items() if key not in others}
        rest = {key: value for key, value in peft_model_state_dict.items() if key in others}
        own = method._remap_adapter_state_dict_for_load(model, config, adapter_name, own)
        _widen(model, own)
        with _no_prefix(config):
            return original(model, {**own, **rest}, adapter_name, *args, **kwargs)

    return set_peft_model_state_dict
