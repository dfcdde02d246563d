"""Makes Bone a PEFT method again, at import and in memory: no file of an installed package is touched."""

from __future__ import annotations

import sys
import warnings
from contextlib import ExitStack, nullcontext
from functools import wraps
from inspect import signature
from typing import Any

import peft
from peft import mapping
from peft.utils import PeftType, hotswap, register_peft_method

from bone_peft.errors import BoneError

from ..compat.adapter_keys import add_keys
from ..compat.own_bone import take_place
from ..compat.state_dicts import ask_the_method
from ..compat.tensor_parallel import parts_of
from ..compat.undoing import set_attribute, set_entry
from . import config, layer, model
from .hotswap import swap_adapter
from .model_card import tell_how_to_load
from .offload import is_offloaded, kept_where_it_is
from .saved import without_split_base, writing
from .tensors import LEAF

_NAME = "BONE"


def register() -> None:
    """Register Bone with PEFT, in the place of PEFT's own if it has one. Doing it twice is harmless.

    If anything fails, PEFT is as it was.
    """
    if mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(_NAME) is config.BoneConfig:  # type: ignore[call-overload]
        return
    with ExitStack() as undo:
        _add_peft_type(undo)
        take_place(undo, config.BoneConfig, model.BoneModel)
        _register_method(undo)
        _restore_import_paths(undo)
        ask_the_method(undo)
        _support_hotswap(undo)
        add_keys(undo, config.BoneConfig, "bone_", LEAF)
        _check_loads_over_adapters(undo)
        _explain_bone_in_model_cards(undo)
        _tell_who_writes(undo)
        _leave_offloaded_bases_alone(undo)
        undo.pop_all()


def _add_peft_type(undo: ExitStack) -> None:
    """Add ``PeftType.BONE``. Enums are closed, so the member is entered where ``enum`` itself enters members."""
    if _NAME in PeftType.__members__:
        return
    member: Any = str.__new__(PeftType, _NAME)
    member._name_ = member._value_ = _NAME
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    undo.callback(PeftType._member_names_.remove, _NAME)
    PeftType._member_names_.append(_NAME)
    set_entry(undo, PeftType._member_map_, _NAME, member)
    set_entry(undo, PeftType._value2member_map_, _NAME, member)
    undo.callback(type.__delattr__, PeftType, _NAME)
    type.__setattr__(PeftType, _NAME, member)


def _register_method(undo: ExitStack) -> None:
    for table in (
        mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        mapping.PEFT_TYPE_TO_TUNER_MAPPING,
        mapping.PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
        mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
    ):
        entries: Any = table
        # Whatever is there then makes place for what was there before.
        set_entry(undo, entries, _NAME, None)
        del entries[_NAME]
    register_peft_method(name="bone", config_cls=config.BoneConfig, model_cls=model.BoneModel)


def _restore_import_paths(undo: ExitStack) -> None:
    """``from peft import BoneConfig`` and ``from peft.tuners.bone import BoneLayer``, as in PEFT 0.14 to 0.18."""
    package = sys.modules[__package__]
    names = ("BoneConfig", "BoneModel")
    for owner in (peft, peft.tuners):
        for name in names:
            set_attribute(undo, owner, name, getattr(package, name))
        listed = getattr(owner, "__all__", ())
        set_attribute(undo, owner, "__all__", [*listed, *(name for name in names if name not in listed)])
    set_attribute(undo, peft.tuners, "bone", package)
    set_entry(undo, sys.modules, "peft.tuners.bone", package)
    for module in (config, layer, model):
        set_entry(undo, sys.modules, f"peft.tuners.bone.{module.__name__.rpartition('.')[2]}", module)


def _support_hotswap(undo: ExitStack) -> None:
    """PEFT's hot-swap reads LoRA's fields, so Bone's part of it is ours. All else goes where it went."""
    original = hotswap.hotswap_adapter_from_state_dict

    def hotswap_adapter_from_state_dict(
        model: Any, state_dict: Any, adapter_name: str, config: Any, parameter_prefix: str = "lora_"
    ) -> None:
        if parameter_prefix == "bone_":
            swap_adapter(model, state_dict, adapter_name, config)
        else:
            original(model, state_dict, adapter_name, config, parameter_prefix)

    prepare = hotswap.prepare_model_for_compiled_hotswap

    @wraps(prepare)
    def prepare_model_for_compiled_hotswap(model: Any, *, target_rank: int | None = None, **kwargs: Any) -> None:
        sizes = {r for module in model.modules() if isinstance(module, layer.BoneLayer) for r in module.bone_r.values()}
        if not sizes:
            prepare(model, target_rank=target_rank, **kwargs)
        elif target_rank is not None and sizes != {target_rank}:
            raise BoneError(
                f"Bone's r ({', '.join(map(str, sorted(sizes)))} here) is the size of its blocks, so adapters cannot "
                f"be filled up to rank {target_rank}: those of one r are swapped without compiling again, leave it out."
            )

    set_attribute(undo, hotswap, "prepare_model_for_compiled_hotswap", prepare_model_for_compiled_hotswap)
    set_attribute(undo, hotswap, "hotswap_adapter_from_state_dict", hotswap_adapter_from_state_dict)
    set_entry(undo, hotswap.CONFIG_KEYS_TO_CHECK, PeftType(_NAME), [])


def _check_loads_over_adapters(undo: ExitStack) -> None:
    """``PeftModel.load_adapter`` under a name that is taken reads the tensors alone, and Bat's two forms look alike."""
    original = peft.PeftModel.load_adapter

    @wraps(original)
    def load_adapter(self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        old = self.peft_config.get(adapter_name)
        if isinstance(old, config.BoneConfig):
            new = peft.PeftConfig.from_pretrained(str(model_id), **_of_the_hub(kwargs))
            if not isinstance(new, config.BoneConfig) or new.variant is not old.variant:
                kind = new.variant.name if isinstance(new, config.BoneConfig) else new.peft_type
                raise BoneError(
                    f"Adapter {adapter_name} is {old.variant.name}, and {model_id} holds {kind}: load it under another "
                    "name, or delete_adapter() first."
                )
        ours = isinstance(old, config.BoneConfig) and is_offloaded(self) and "device_map" not in kwargs
        with kept_where_it_is(self.base_model.model) if ours else nullcontext():
            return original(self, model_id, adapter_name, *args, **kwargs)

    set_attribute(undo, peft.PeftModel, "load_adapter", load_adapter)


def _leave_offloaded_bases_alone(undo: ExitStack) -> None:
    """``PeftModel.from_pretrained`` for a base that Accelerate has offloaded, unless it is told where to put things."""
    original: Any = vars(peft.PeftModel)["from_pretrained"].__func__

    @wraps(original)
    def from_pretrained(cls: Any, model: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        ours = is_offloaded(model) and "device_map" not in kwargs
        if ours:
            known = signature(original).bind(cls, model, model_id, *args, **kwargs).arguments.get("config")
            known = known or peft.PeftConfig.from_pretrained(str(model_id), **_of_the_hub(kwargs))
            ours = isinstance(known, config.BoneConfig)
        with kept_where_it_is(model) if ours else nullcontext():
            return original(cls, model, model_id, *args, **kwargs)

    set_attribute(undo, peft.PeftModel, "from_pretrained", classmethod(from_pretrained))


def _explain_bone_in_model_cards(undo: ExitStack) -> None:
    """``save_pretrained`` writes a README, and whoever gets the folder may have PEFT alone."""
    original = peft.PeftModel.create_or_update_model_card

    @wraps(original)
    def create_or_update_model_card(self: Any, output_dir: str) -> None:
        if not any(isinstance(known, config.BoneConfig) for known in self.peft_config.values()):
            original(self, output_dir)
            return
        try:
            original(self, output_dir)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # It reads the config of a model that may be anybody's, and the tensors are saved after it.
            warnings.warn(f"The adapter's README.md says nothing of its base ({error}).", stacklevel=3)
        tell_how_to_load(output_dir)

    set_attribute(undo, peft.PeftModel, "create_or_update_model_card", create_or_update_model_card)


def _tell_who_writes(undo: ExitStack) -> None:
    """``save_pretrained`` runs in every process, and one writes; of a base that is split it asks for nothing."""
    original = peft.PeftModel.save_pretrained

    @wraps(original)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature(original).bind(self, *args, **kwargs).arguments
        ours = all(isinstance(known, config.BoneConfig) for known in self.peft_config.values())
        if ours and parts_of(self) > 1 and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = without_split_base(self)
        with writing() if given.get("is_main_process", True) else nullcontext():
            return original(self, *args, **kwargs)

    set_attribute(undo, peft.PeftModel, "save_pretrained", save_pretrained)


def _of_the_hub(options: dict[str, Any]) -> dict[str, Any]:
    names = ("subfolder", "revision", "cache_dir", "token", "force_download", "local_files_only")
    return {name: options[name] for name in names if name in options}
