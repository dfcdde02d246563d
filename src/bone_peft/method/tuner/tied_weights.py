"""Weights that are one in several places of a model: tied embeddings, layers that are used again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from bone_peft.errors import BoneError

from ..compat.tied_names import KEEPS_APART, forget, tied_weights
from .layer import BoneLayer


def mark_shared(model: nn.Module) -> None:
    """Tell each layer whether its weight is another module's as well."""
    owners = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    for layer in model.modules():
        if isinstance(layer, BoneLayer):
            layer.shares_weight = owners[id(layer.get_base_layer()._parameters.get("weight"))] > 1


def check_ties(model: nn.Module, layers: Mapping[str, BoneLayer]) -> None:
    """Raise ``BoneError`` if a merged model would lose its adapters on the way through ``save_pretrained``.

    Transformers ties some weights whenever it builds a model, and then one merged weight would stand for all. Tied
    embeddings are another matter: the config can say that they are two.

    Args:
        model: the model that is to be merged and unloaded.
        layers: the layers that an adapter changes, by name.
    """
    tied = tied_weights(model)
    partners: dict[str, set[str]] = {}
    for target, source in tied.items():
        partners.setdefault(target, set()).add(source)
        partners.setdefault(source, set()).add(target)
    embeddings = {id(module) for module in _embeddings(model)}
    for name, layer in layers.items():
        is_embedding = id(layer) in embeddings or id(layer.get_base_layer()) in embeddings
        if is_embedding and _can_part(model):
            continue
        others = partners.get(f"{name}.weight")
        if others:
            raise BoneError(
                f"{name} and {next(iter(others)).removesuffix('.weight')} are one weight in every "
                f"{type(model).__name__}, so a merged model could not be loaded again: keep the adapter beside the "
                "base, or use merge_adapter()."
            )


def note_untied(model: nn.Module) -> None:
    """Have config and bookkeeping say so where merging has made two weights of a tied embedding."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tied = tied_weights(model)
    apart = [t for t, s in tied.items() if t in parameters and s in parameters and parameters[t] is not parameters[s]]
    if not apart or not _can_part(model):
        return
    forget(model, apart)
    for config in _configs(model):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _can_part(model: Any) -> bool:
    """Whether the config can say that tied embeddings are two: with an encoder it means a scale, too."""
    return KEEPS_APART or not getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def input_embedding_name(model: Any) -> str:
    """The name of the module of the input embeddings."""
    embedding = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding)


def is_named(module: str, name: str) -> bool:
    """Whether ``name``, as users write it, means this module: its whole name, or the end of it."""
    return module == name or module.endswith(f".{name}")


def _embeddings(model: Any) -> Iterable[nn.Module]:
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            module = getattr(model, getter)()
        except (AttributeError, NotImplementedError):
            continue
        if module is not None:
            yield module


def _configs(model: Any) -> Iterable[Any]:
    config = getattr(model, "config", None)
    if config is not None:
        yield config
        get_text_config = getattr(config, "get_text_config", None)
        if get_text_config is not None:
            yield get_text_config()
