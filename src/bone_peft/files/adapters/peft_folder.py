"""The folder that PEFT saves an adapter in: a config, and tensors under ``base_model.model.``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils.other import EMBEDDING_LAYER_NAMES
from safetensors.torch import save_file
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.io.json_file import read_json
from bone_peft.io.names import brief, check_names, shown
from bone_peft.io.safetensors_file import read_safetensors
from bone_peft.io.torch_file import read_torch
from bone_peft.method import BoneConfig
from bone_peft.method.tuner.patterns import check_patterns, pattern_key
from bone_peft.method.variants import Params

from .adapter import Adapter

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OLD_WEIGHTS = "adapter_model.bin"
PREFIX = "base_model.model."

# What every method of PEFT calls by the same name.
COMMON = (
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
)


_NAMES = ("name or list of names", str, list, set, tuple)
_TYPES: dict[str, tuple[Any, ...]] = {
    "base_model_name_or_path": ("name", str),
    "revision": ("name", str),
    "task_type": ("name", str),
    "target_modules": _NAMES,
    "target_parameters": ("list of names", list),
    "exclude_modules": _NAMES,
    "layers_pattern": _NAMES,
    "modules_to_save": ("list of names", list),
    "layers_to_transform": ("index or list of indices", int, list),
    "rank_pattern": ("table of sizes", dict),
    "inference_mode": ("truth value", bool),
}


def _is_a(value: Any, kind: tuple[Any, ...]) -> bool:
    """Whether a value has one of the types, and what it holds is names (or for indices: whole numbers)."""
    inside = int if int in kind else str
    return isinstance(value, kind[1:]) and (isinstance(value, (str, int)) or all(isinstance(v, inside) for v in value))


def recognizes(path: Path, peft_type: str) -> bool:
    """Whether ``path`` is a folder with a config of this method."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("peft_type") == peft_type


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config, and the tensors without PEFT's prefix."""
    config = read_json(path / CONFIG)
    if (path / WEIGHTS).exists():
        weights, stored = path / WEIGHTS, read_safetensors(path / WEIGHTS).tensors
    elif (path / OLD_WEIGHTS).exists():
        weights, stored = path / OLD_WEIGHTS, read_torch(path / OLD_WEIGHTS).tensors
    else:
        raise BoneError(f"{path} has no {WEIGHTS}: the adapter was not saved to its end, or not copied whole.")
    check_names(stored, str(weights))
    stray = next((name for name in stored if not name.startswith(PREFIX)), None)
    if stray is not None:
        raise BoneError(f"{weights} has {shown(stray)}, and PEFT's names start with {PREFIX}: is it an adapter?")
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
    parents = {name.rpartition(".")[0] for name in tensors}
    check_patterns(config, sorted(parents | {name.rpartition(".")[0] for name in parents}), str(path / CONFIG))
    return config, {name: tensor.read() for name, tensor in tensors.items()}


def split(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[dict[str, Params], dict[str, Tensor]]:
    """Tell the adapter's tensors from parameters that were trained whole.

    Args:
        tensors: by name.
        names: the endings of this method's tensors, and what we call them.

    Returns:
        The tensors by module and our name, and all others.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ending = next((ending for ending in names if name.endswith(f".{ending}")), None)
        if ending is None:
            whole[name.replace(".base_layer.", ".")] = tensor
        else:
            layers.setdefault(name.removesuffix(f".{ending}"), {})[names[ending]] = tensor
    return dict(layers), whole


def bone_config(config: dict[str, Any], where: Path, **options: Any) -> BoneConfig:
    """A BoneConfig with the fields that all methods share, and with ``options``."""
    for name, value in (config | options).items():
        if name in _TYPES and value is not None and not _is_a(value, _TYPES[name]):
            raise BoneError(
                f"{where / CONFIG} has {name}={shown(str(value))}, which is no {_TYPES[name][0]}: is it damaged?"
            )
    try:
        return BoneConfig(**{name: config[name] for name in COMMON if name in config}, **options)
    except BoneError as error:
        raise BoneError(f"{where / CONFIG}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise BoneError(
            f"{where / CONFIG} has a value of the wrong type ({brief(error)}): take another copy."
        ) from None


def checked(adapter: Adapter, path: Path) -> Adapter:
    """Itself, if tensors and config are of one adapter."""
    adapter.checked(str(path))
    for module in adapter.layers:
        config = adapter.config
        size = config.layer_size(config.rank_pattern.get(pattern_key(config.rank_pattern, module)))
        if size != adapter.r(module):
            raise BoneError(
                f"{path} has tensors of size {adapter.r(module)} for {shown(module)}, and its config says "
                f"{size}: the two files are of different adapters."
            )
    wanted = (*(adapter.config.modules_to_save or ()), *EMBEDDING_LAYER_NAMES)
    for name in adapter.whole:
        biased = adapter.config.bias != "none" and name.endswith(".bias")
        if not biased and not any(f".{module}." in f".{name}" for module in wanted):
            raise BoneError(f"{path} holds {shown(name)}, which its config does not speak of: is it a Bone adapter?")
    return adapter


def with_sizes(config: BoneConfig, sizes: Mapping[str, int]) -> BoneConfig:
    """``config`` for modules of these sizes: the most frequent one, and a pattern for the others."""
    field = config.variant.size_field
    counts = list(sizes.values())
    common = max(set(counts), key=lambda size: (counts.count(size), -size))
    options: dict[str, Any] = {
        field: common,
        "rank_pattern": {name: size for name, size in sizes.items() if size != common},
    }
    if "bottleneck_alpha" in config.variant.options:
        options["bottleneck_alpha"] = 1.0
    return replace(config, **options)


def common_options(config: PeftConfig) -> dict[str, Any]:
    """The fields that all methods share."""
    return {name: getattr(config, name) for name in COMMON}


def write_folder(
    folder: Path, config: PeftConfig, layers: Iterable[tuple[str, Tensor]], whole: Mapping[str, Tensor]
) -> None:
    """Write a PEFT adapter into a folder. Names come without PEFT's prefix."""
    named = {PREFIX + name: tensor.contiguous() for name, tensor in (*layers, *whole.items())}
    config.save_pretrained(str(folder))
    save_file(named, str(folder / WEIGHTS), metadata={"format": "pt"})
