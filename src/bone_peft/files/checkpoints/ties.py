"""Parameters that are one tensor by several names, and what becomes of them when an edit tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.method.compat.tied_names import KEEPS_APART

from .checkpoint import Edit, Held, Readable

R = TypeVar("R", bound=Readable)


def with_ties(stored: Mapping[str, R], ties: Mapping[str, str]) -> dict[str, R]:
    """``stored``, by every name of each tensor; the one it is stored by may be any of them."""
    found = dict(stored)
    for one, other in [*((source, target) for target, source in ties.items()), *ties.items()]:
        if other in found:
            found.setdefault(one, found[other])
    return found


def parted(ties: Mapping[str, str], stored: Mapping[str, Readable], edits: Mapping[str, Edit]) -> dict[str, Tensor]:
    """Every tied parameter as it becomes, if any of them is no longer what it is tied to; else nothing.

    Args:
        ties: ``{target: source}``.
        stored: what each parameter is read from.
        edits: by parameter name.
    """
    held = {target: source for target, source in ties.items() if target in stored}
    if not any(_differ(stored, edits, *tie) for tie in held.items()):
        return {}
    # All of them, as the config unties all or none.
    return {name: _value(stored, edits, name) for name in dict.fromkeys([*held, *held.values()])}


def untied(settings: dict[str, Any], config: Any) -> dict[str, Any]:
    """The settings of a model whose ties are cut.

    T5 and its kin scale by ``tie_word_embeddings``, so with an encoder it stays; Transformers ties no tensors that
    differ, whatever it says.
    """
    if config.is_encoder_decoder:
        if not KEEPS_APART:
            raise BoneError(
                "Merged, the embeddings of this model are no longer one weight, and this version of Transformers would "
                "tie them again: install Transformers 5 or newer, or keep the adapter beside the base."
            )
        return dict(settings)
    changed = settings | {"tie_word_embeddings": False}
    for name, value in changed.items():
        part = getattr(config, name) if name in config.sub_configs else None
        if getattr(part, "tie_word_embeddings", False) and isinstance(value, dict):
            changed[name] = untied(value, part)
        elif name.startswith("tie_") and value is True:
            changed[name] = False
    return changed


def _differ(stored: Mapping[str, Readable], edits: Mapping[str, Edit], *tie: str) -> bool:
    if not any(name in edits for name in tie):
        return False
    one, other = (_value(stored, edits, name) for name in tie)
    return not torch.equal(one, other)


def _value(stored: Mapping[str, Readable], edits: Mapping[str, Edit], name: str) -> Tensor:
    return edits.get(name, Edit()).whole(Held(stored[name].read()))
