"""MiSS, PEFT's later name for Bone: the same tensors under ``miss_block``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from peft import MissConfig

from bone_peft.errors import BoneError

from .. import peft_folder
from ..adapter import Adapter
from ..format import Format

_BIAS = {"MiSS_only": "bone_only"}


def read(path: Path) -> Adapter:
    config, tensors = peft_folder.read_folder(path)
    kind = config.get("init_weights", True)
    bias = config.get("bias", "none")
    options = {
        "r": config.get("r", 64),
        "init_weights": True if kind == "mini" else kind,
        "bone_dropout": config.get("miss_dropout", 0.0),
        "bias": _BIAS.get(bias, bias) if isinstance(bias, str) else bias,
    }
    layers, whole = peft_folder.split(tensors, {"miss_block": "bone_block"})
    mini_r = config.get("mini_r") if kind == "mini" else None
    adapter = Adapter(peft_folder.bone_config(config, path, **options), layers, whole, mini_r)
    peft_folder.checked(adapter, path)
    if kind == "mini" and any(params["bone_block"].shape[1] != mini_r for params in layers.values()):
        raise BoneError(f"{path} says mini_r={mini_r!r}, and its tensors are of another width: take another copy.")
    return adapter


def write(adapter: Adapter, path: Path) -> None:
    variant = adapter.variant.name
    if variant not in ("bone", "bat"):
        raise BoneError(f"MiSS has no {variant}: convert it to lora or bone instead.")
    if adapter.config.rank_pattern:
        raise BoneError("MiSS has one r for all layers, and this adapter has several: convert it to lora or bone.")
    bias = {new: old for old, new in _BIAS.items()}.get(adapter.config.bias, adapter.config.bias)
    options: dict[str, Any] = {
        "r": adapter.config.r,
        "miss_dropout": adapter.config.bone_dropout,
        "bias": bias,
    }
    options |= peft_folder.common_options(adapter.config)
    config = MissConfig(init_weights=adapter.config.init_weights, **options)
    named = [(f"{module}.miss_block", params["bone_block"]) for module, params in adapter.layers.items()]
    peft_folder.write_folder(path, config, named, adapter.whole)


FORMAT = Format("miss", "PEFT MiSS folder", partial(peft_folder.recognizes, peft_type="MISS"), read, write)
