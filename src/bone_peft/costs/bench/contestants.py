"""What is compared: ours and PEFT's, each on the same frozen weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from peft import LoraConfig, MissConfig, PeftConfig, get_peft_model
from torch import nn

from bone_peft.errors import BoneError
from bone_peft.method import BoneConfig


@dataclass(frozen=True)
class Setting:
    """What the adapters are to be like.

    Attributes:
        targets: names of the modules to adapt, or ``"all-linear"``.
        r: block size of Bone and Bat, also in PEFT's MiSS.
        lora_r: rank of LoRA and width of the bottleneck; 36 has about as many parameters as Bone with 64.
    """

    targets: list[str] | str = "all-linear"
    r: int = 64
    lora_r: int = 36


FLOOR = "floor"
"""The frozen model: forward, and backward to its input. Nothing that trains an adapter can be faster."""

_METHODS: dict[str, Callable[[Setting], PeftConfig]] = {
    "bone": lambda s: BoneConfig(r=s.r, target_modules=s.targets),
    "bat-input": lambda s: BoneConfig(r=s.r, init_weights="bat", share="input", target_modules=s.targets),
    "bat": lambda s: BoneConfig(r=s.r, init_weights="bat", target_modules=s.targets),
    "bottleneck": lambda s: BoneConfig(bottleneck_size=s.lora_r, target_modules=s.targets),
    "peft-lora": lambda s: LoraConfig(r=s.lora_r, lora_alpha=s.lora_r, target_modules=s.targets),
    "peft-dora": lambda s: LoraConfig(r=s.lora_r, lora_alpha=s.lora_r, use_dora=True, target_modules=s.targets),
    "peft-miss": lambda s: MissConfig(r=s.r, target_modules=s.targets),
    "peft-miss-bat": lambda s: MissConfig(r=s.r, init_weights="bat", target_modules=s.targets),
}
_LOW = "-low"

CONTESTANTS = (FLOOR, *(name + suffix for name in _METHODS for suffix in ("", _LOW)))
"""All names. ``-low`` keeps the adapter in the base's dtype (``autocast_adapter_dtype=False``), else it is float32."""


def contestant(name: str, base: nn.Module, setting: Setting) -> nn.Module:
    """A model that shares the frozen weights of ``base`` and has adapters of its own.

    Raises:
        BoneError: if ``name`` is not in :data:`CONTESTANTS`.
    """
    if name not in CONTESTANTS:
        raise BoneError(f"There is no contestant {name}: choose from {', '.join(CONTESTANTS)}.")
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    model = copy.deepcopy(base, shared)
    if name == FLOOR:
        return model
    return adapted(name, model, setting)


def adapted(name: str, base: nn.Module, setting: Setting) -> nn.Module:
    """``base`` itself with the adapters of a contestant."""
    config = _METHODS[name.removesuffix(_LOW)](setting)
    if isinstance(config, LoraConfig) and not config.use_dora:
        config.target_parameters = _experts_of(base)  # Ours and no other method of PEFT's find them by themselves
    return get_peft_model(base, config, autocast_adapter_dtype=not name.endswith(_LOW))


def _experts_of(base: nn.Module) -> list[str] | None:
    """The parameters that hold the matrices of all experts, by the ends of their names."""
    names = {".".join(name.split(".")[-2:]) for name, p in base.named_parameters() if p.ndim == 3 and "experts" in name}
    return sorted(names) or None
