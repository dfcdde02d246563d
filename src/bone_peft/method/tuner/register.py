"""Makes Bone a PEFT method again, at import and in memory: no file of an installed package is touched."""

from __future__ import annotations

import re
import sys
from functools import wraps
from typing import Any

import peft
from peft import mapping
from peft.utils import PeftType, hotswap, register_peft_method, transformers_weight_conversion
from transformers.core_model_loading import WeightRenaming

from bone_peft.errors import BoneError

from . import config, layer, model
from .hotswap import swap_adapter
from .model_card import tell_how_to_load
from .tensors import LEAF

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
    _support_load_adapter_of_transformers()
    _check_loads_over_adapters()
    _explain_bone_in_model_cards()


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

    hotswap.prepare_model_for_compiled_hotswap = prepare_model_for_compiled_hotswap
    hotswap.CONFIG_KEYS_TO_CHECK[PeftType(_NAME)] = []
    hotswap.hotswap_adapter_from_state_dict = hotswap_adapter_from_state_dict


def _support_load_adapter_of_transformers() -> None:
    """``load_adapter`` of a Transformers model asks PEFT for the keys in the model."""
    original = transformers_weight_conversion.build_peft_weight_mapping

    def build_peft_weight_mapping(weight_conversions: Any, adapter_name: str, peft_config: Any = None) -> Any:
        mapping = original(weight_conversions, adapter_name, peft_config=peft_config)
        if isinstance(peft_config, config.BoneConfig):
            key = rf"(bone_[^.]*\.{re.escape(adapter_name)})$"
            mapping.append(WeightRenaming(source_patterns=key, target_patterns=rf"\1.{LEAF}"))
        return mapping

    transformers_weight_conversion.build_peft_weight_mapping = build_peft_weight_mapping


def _check_loads_over_adapters() -> None:
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
        return original(self, model_id, adapter_name, *args, **kwargs)

    peft.PeftModel.load_adapter = load_adapter  # type: ignore[method-assign]


def _explain_bone_in_model_cards() -> None:
    """``save_pretrained`` writes a README, and whoever gets the folder may have PEFT alone."""
    original = peft.PeftModel.create_or_update_model_card

    @wraps(original)
    def create_or_update_model_card(self: Any, output_dir: str) -> None:
        original(self, output_dir)
        if any(isinstance(known, config.BoneConfig) for known in self.peft_config.values()):
            tell_how_to_load(output_dir)

    peft.PeftModel.create_or_update_model_card = create_or_update_model_card  # type: ignore[method-assign]


def _of_the_hub(options: dict[str, Any]) -> dict[str, Any]:
    names = ("subfolder", "revision", "cache_dir", "token", "force_download", "local_files_only")
    return {name: options[name] for name in names if name in options}
