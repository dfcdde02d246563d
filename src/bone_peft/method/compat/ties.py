"""Weights that a Transformers model has under two names whenever it is built. Since 5.0 it has a table of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

_TABLE = "all_tied_weights_keys"


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
    """For Transformers 4.57: the names that the classes declare, and who shares the weight with them."""
    from transformers.modeling_utils import _get_tied_weight_keys

    patterns = _get_tied_weight_keys(model)
    named = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    declared = [name for name in named if any(re.search(pattern, name) for pattern in patterns)]
    first: dict[int, str] = {}
    # A weight is another's by name where neither is declared to follow, or the first of those that are.
    for name in sorted(named, key=lambda name: name in declared):
        first.setdefault(id(named[name]), name)
    ties = {name: first[id(named[name])] for name in declared if first[id(named[name])] != name}
    # Two weights by now, perhaps, where one was merged into; the config still asks for one.
    if getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False):
        inner, outer = embedding_name(model), embedding_name(model, "get_output_embeddings")
        if inner is not None and outer is not None and f"{outer}.weight" in declared:
            ties.setdefault(f"{outer}.weight", f"{inner}.weight")
    return ties


def embedding_name(model: Any, getter: str = "get_input_embeddings") -> str | None:
    """The name of the module that ``getter`` gives, if it gives one."""
    try:
        embedding = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return next((name for name, module in model.named_modules() if module is embedding), None)
