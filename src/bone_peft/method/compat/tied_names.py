"""Weights that a Transformers model has under two names whenever it is built. Since 5.0 it has a table of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

_TABLE = "all_tied_weights_keys"

KEEPS_APART = find_spec("transformers.core_model_loading") is not None
"""Whether Transformers, when it loads, ties no weights that differ. Before 5.0 it does what the config says."""


def tied_weights(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are others by another name: ``{"lm_head.weight": "model.embed_tokens.weight"}``.

    Transformers >= 5.0 may have regular expressions there.
    """
    if hasattr(model, _TABLE) or not hasattr(model, "_tied_weights_keys"):
        return dict(getattr(model, _TABLE, None) or {})
    return _found(model)


def forget(model: nn.Module, names: Iterable[str]) -> None:
    """Take names out of the model's own table, if it has one."""
    table = getattr(model, _TABLE, None) or {}
    for name in names:
        table.pop(name, None)


def _found(model: Any) -> dict[str, str]:
    """For Transformers 4.57: which names are one weight in a new model of this kind."""
    new = model
    if not all(parameter.is_meta for parameter in model.parameters()):
        with torch.device("meta"):
            new = type(model)(copy.deepcopy(model.config))
    declared = [re.compile(pattern) for pattern in model._tied_weights_keys or ()]
    names: dict[int, list[str]] = {}
    for name, parameter in new.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    ties: dict[str, str] = {}
    for several in names.values():
        # Others follow the one that is not declared to follow, or else the first.
        source = min(several, key=lambda name: any(pattern.search(name) for pattern in declared))
        ties |= {name: source for name in several if name != source}
    return ties


def embedding_name(model: Any) -> str | None:
    """The name of the input embeddings, if a model has them."""
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return next((name for name, module in model.named_modules() if module is embedding), None)
