"""Modules by RWKV's own names (``blocks.0.att.key``), which RWKV-PEFT saves, and by those of our models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor

from bone_peft.method.tuner.patterns import pattern_key
from bone_peft.rwkv.pth_names import hf_layout, hf_name, pth_layout, pth_name

from .adapter import Adapter

_RWKV = re.compile(r"blocks\.\d+\.(att|ffn)\.")


def are_rwkv(names: Iterable[str]) -> bool:
    """Whether modules are called as in RWKV's files."""
    return any(_RWKV.match(name) for name in names)


def by_hf_names(adapter: Adapter) -> Adapter:
    """With the names of the Hugging Face model, in place of RWKV's."""
    whole = {hf_name(name): hf_layout(name, tensor) for name, tensor in adapter.whole.items()}
    return _renamed(adapter, hf_name, whole)


def by_rwkv_names(adapter: Adapter) -> Adapter:
    """The way back."""
    named = ((pth_name(name), tensor) for name, tensor in adapter.whole.items())
    return _renamed(adapter, pth_name, {name: pth_layout(name, tensor) for name, tensor in named})


def _renamed(adapter: Adapter, rename: Callable[[str], str], whole: dict[str, Tensor]) -> Adapter:
    """With each module by its whole name in the config: a pattern that meets names of one kind means nothing else."""
    sizes = adapter.config.rank_pattern or {}
    patterns = {module: pattern_key(sizes, module) for module in adapter.layers}
    config = replace(
        adapter.config,
        target_modules=sorted(map(rename, adapter.layers)),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        rank_pattern={rename(module): sizes[key] for module, key in patterns.items() if key in sizes},
        modules_to_save=sorted({name.rpartition(".")[0] for name in whole} - {""}) or None,
    )
    layers = {rename(module): params for module, params in adapter.layers.items()}
    return replace(adapter, config=config, layers=layers, whole=whole)
