"""Makes Bone a PEFT method again, at import and in memory: no file of an installed package is touched."""

from __future__ import annotations

import sys
from typing import Any

import peft
from peft import mapping
from peft.utils import PeftType, hotswap, register_peft_method

from . import config, layer, model
from .hotswap import swap_adapter

_NAME = "BONE"


def register() -> None:
    """Register Bone with PEFT. Doing it twice is harmless.

    Raises:
        ImportError: if this PEFT has a Bone of its own (0.14 to 0.18).
    """
    registered = mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(_NAME)  # type: ignore[call-overload]
    if registered is config.BoneConfig:
        return
    if registered is not None:
        raise ImportError(
            f"PEFT {peft.__version__} has a Bone of its own, which bone-peft would collide with: install PEFT 0.21 or "
            "newer (pip install --upgrade peft)."
        )
    _add_peft_type()
    register_peft_method(name="bone", config_cls=config.BoneConfig, model_cls=model.BoneModel)
    _restore_import_paths()
    _support_hotswap()


def _add_peft_type() -> None:
    """Add ``PeftType.BONE``. Enums are closed, so the member is entered where ``enum`` itself enters members."""
    if _NAME in PeftType.__members__:
        return
    member: Any = str.__new__(PeftType, _NAME)
    member._name_ = member._value_ = _NAME
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_names_.append(_NAME)
    PeftType._member_map_[_NAME] = member
    PeftType._value2member_map_[_NAME] = member
    type.__setattr__(PeftType, _NAME, member)


def _restore_import_paths() -> None:
    """``from peft import BoneConfig`` and ``from peft.tuners.bone import BoneLayer``, as in PEFT 0.14 to 0.18."""
    package = sys.modules[__package__]
    names = ("BoneConfig", "BoneModel")
    for owner in (peft, peft.tuners):
        for name in names:
            setattr(owner, name, getattr(package, name))
        if hasattr(owner, "__all__"):
            owner.__all__ = [*owner.__all__, *names]  # type: ignore[attr-defined]
    peft.tuners.bone = package  # type: ignore[attr-defined]
    sys.modules["peft.tuners.bone"] = package
    for module in (config, layer, model):
        sys.modules[f"peft.tuners.bone.{module.__name__.rpartition('.')[2]}"] = module


def _support_hotswap() -> None:
    """PEFT's hot-swap reads LoRA's fields, so Bone's part of it is ours. All else goes where it went."""
    original = hotswap.hotswap_adapter_from_state_dict

    def hotswap_adapter_from_state_dict(
        model: Any, state_dict: Any, adapter_name: str, config: Any, parameter_prefix: str = "lora_"
    ) -> None:
        if parameter_prefix == "bone_":
            swap_adapter(model, state_dict, adapter_name, config)
        else:
            original(model, state_dict, adapter_name, config, parameter_prefix)

    hotswap.CONFIG_KEYS_TO_CHECK[PeftType(_NAME)] = []
    hotswap.hotswap_adapter_from_state_dict = hotswap_adapter_from_state_dict
