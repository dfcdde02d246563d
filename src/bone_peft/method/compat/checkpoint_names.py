"""Names of tensors in a checkpoint, and of the parameters that they become, by Transformers' own rules.

Since 5.0 those are renamings and converters; 4.57 has regular expressions, which some classes carry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

try:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    CONVERTS = True
except ImportError:
    CONVERTS = False


EXPERTS_ARE_MODULES = not CONVERTS
"""Whether each expert is a module of its own, tens of thousands of them: Transformers < 5."""


def places(model: nn.Module, stored: Iterable[str]) -> Iterator[tuple[str, str, set[str] | None]]:
    """For each name in ``stored`` that has a place: the name, the parameter, and what is made of the tensor.

    The last is ``None`` where a tensor becomes the parameter as it is, and else the names of all that are made of it.
    """
    return _converted(model, stored) if CONVERTS else _renamed(model, stored)


def expert_places(model: Any, modules: Iterable[str]) -> dict[str, tuple[str, int, int, int]]:
    """Where each module of an expert, by the names of older models, is in a model whose experts are fused.

    Returns:
        For those that are: the fused parameter, which expert, which part of the parameter, and how many parts it has.
    """
    if not CONVERTS or not hasattr(getattr(model, "config", None), "model_type"):
        return {}
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter) and _only_fuses(entry)]
    found = {}
    for name in modules:
        parameter, pattern = rename_source_key(f"{name}.weight", renamings, converters, model.base_model_prefix, {})
        number = re.search(r"experts\.(\d+)\.", name)
        if pattern is not None and number is not None:
            sources = next(entry.source_patterns for entry in converters if pattern in entry.source_patterns)
            found[name] = parameter, int(number[1]), sources.index(pattern), len(sources)
    return found


def separate_names(model: Any, fused: str, parts: Sequence[str]) -> list[str]:
    """The modules of an expert that a fused parameter stands for, in its order, with ``{}`` for the expert's number.

    Args:
        model: has the parameter.
        fused: its name.
        parts: what its parts are called where nothing else is known.
    """
    container, _, leaf = fused.rpartition(".")
    for entry in get_model_conversion_mapping(model) if CONVERTS else ():
        if isinstance(entry, WeightConverter) and _only_fuses(entry) and entry.target_patterns[0].endswith(f".{leaf}"):
            parts = [re.split(r"[.*\\]+", pattern.removesuffix(".weight"))[-1] for pattern in entry.source_patterns]
            if parts[0].startswith("w") and getattr(model.config, "model_type", None) != "deepseek_v4":
                container = container.replace(".mlp.", ".block_sparse_moe.")
            break
    return [f"{container}.{{}}.{part}" for part in parts]


def _only_fuses(converter: Any) -> bool:
    """Whether it lays experts one behind the other, and their parts side by side, and does nothing else."""
    done = [(type(step).__name__, getattr(step, "dim", None)) for step in converter.operations]
    return done in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])


def _converted(model: Any, stored: Iterable[str]) -> Iterator[tuple[str, str, set[str] | None]]:
    known: Any = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix: Any = model.base_model_prefix
    for name in stored:
        parameter, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if parameter not in known and name in known:
            parameter, pattern = rename_source_key(name, [], [], prefix, known)
        if parameter not in known:
            continue
        if pattern is None:
            yield name, parameter, None
        else:
            converter = next(entry for entry in converters if pattern in entry.source_patterns)
            # One tensor that becomes several is listed under the first of them.
            several = {parameter.replace(converter.target_patterns[0], t) for t in converter.target_patterns}
            yield name, parameter, {parameter, *several}


def _renamed(model: Any, stored: Iterable[str]) -> Iterator[tuple[str, str, set[str] | None]]:
    from transformers import modeling_utils

    known = model.state_dict()
    is_vlm = any(kind in type(model).__name__.lower() for kind in getattr(modeling_utils, "VLMS", ()))
    mapping = model._checkpoint_conversion_mapping if is_vlm else {}
    prefix = f"{model.base_model_prefix}."
    for name in stored:
        parameter, _ = model._fix_state_dict_key_on_load(name)
        for pattern, replacement in mapping.items():
            parameter, times = re.subn(pattern, replacement, parameter)
            if times:
                break
        for candidate in (parameter, prefix + parameter, parameter.removeprefix(prefix)):
            if candidate in known:
                yield name, candidate, None
                break
