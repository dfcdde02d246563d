"""The outline of a Transformers model: names and shapes on the meta device, no weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from bone_peft.errors import BoneError
from bone_peft.io.names import brief

# Fields that say how often a part of a model is built. Sizes of blocks and indices of layers are others.
_REPEATED = re.compile(r"^(?!.*(size|norm|idx|index|(^|_)ids?(_|$))).*(layer|depth|block)")

_AUTO = {
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}


@dataclass
class Names:
    """Which parameter each tensor of a checkpoint becomes.

    Attributes:
        parameters: parameter name by checkpoint name, where a tensor becomes one parameter as it is.
        converted: names of parameters that Transformers computes out of several tensors, or of parts of one.
    """

    parameters: dict[str, str] = field(default_factory=dict)
    converted: set[str] = field(default_factory=set)


def outline(config: Any, task_type: str | None = None) -> nn.Module:
    """The model that ``config`` describes, on the meta device: a moment, and no memory.

    Raises:
        BoneError: Transformers cannot build it.
    """
    try:
        cls = _AUTO.get(task_type or "") or _named(config.architectures) or transformers.AutoModelForCausalLM
        build = getattr(cls, "_from_config", None) or cls.from_config
        with torch.device("meta"):
            return build(config, dtype=config.dtype or torch.float32).eval()
    except Exception as error:
        raise BoneError(
            f"Transformers cannot build a {config.model_type} model from this config ({brief(error)})."
        ) from error


def _named(architectures: Any) -> Any:
    """The model class that a config names first, if Transformers has it."""
    name = architectures[0] if architectures else ""
    cls = getattr(transformers, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel) else None


def parameter_names(model: nn.Module, stored: Iterable[str]) -> Names:
    """Follow the names of a checkpoint to the names of the model's parameters, as Transformers does when it loads."""
    known: Any = model.state_dict()
    mapping = get_model_conversion_mapping(model)  # type: ignore[arg-type]
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix: Any = model.base_model_prefix
    names = Names()
    for name in stored:
        parameter, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if parameter not in known and name in known:
            parameter, pattern = rename_source_key(name, [], [], prefix, known)
        if parameter not in known:
            continue
        if pattern is None:
            names.parameters[name] = parameter
        else:
            targets = {parameter}
            converter = next(entry for entry in converters if pattern in entry.source_patterns)
            # One tensor that becomes several is listed under the first of them.
            targets |= {parameter.replace(converter.target_patterns[0], t) for t in converter.target_patterns}
            names.converted |= targets
    return names


def linear_shape(model: nn.Module, module: str) -> tuple[int, int] | None:
    """``(out, in)`` of a linear module, ``None`` if there is none of this name."""
    try:
        found = model.get_submodule(module)
    except AttributeError:
        return None
    if isinstance(found, nn.Linear):
        return found.out_features, found.in_features
    if isinstance(found, Conv1D):
        return found.nf, found.weight.shape[0]
    return None


def is_transposed(model: nn.Module, module: str) -> bool:
    """Whether the module keeps its weight as ``(in, out)``, as GPT-2 does."""
    return isinstance(model.get_submodule(module), Conv1D)


def ties(model: nn.Module) -> dict[str, str]:
    """Parameters that are others by another name: ``{"lm_head.weight": "model.embed_tokens.weight"}``."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    names = list(dict(model.named_parameters(remove_duplicate=False)))
    found: dict[str, str] = {}
    for target, source in tied.items():
        # Keys may be regular expressions; then they pair names in order.
        targets = [name for name in names if re.fullmatch(target, name)] or [target]
        sources = [name for name in names if re.fullmatch(source, name)] or [source]
        if len(sources) == 1:
            sources *= len(targets)
        found |= dict(zip(targets, sources, strict=False))
    return found


def check_sizes(settings: Any, layers: int, where: Path) -> None:
    """Raise a BoneError if a config asks for more layers than ``layers``, or for an absurd number of anything repeated.

    Each layer is an object even in an outline, and a config that is damaged can ask for billions.
    """
    pairs = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for name, value in pairs:
        if isinstance(value, (dict, list)):
            check_sizes(value, layers, where)
        elif isinstance(value, int) and isinstance(name, str):
            limit = layers if _REPEATED.search(name) else 2**31
            limit = 4096 if "expert" in name else limit
            if value > limit:
                raise BoneError(f"{where} asks for {name}={value}, which its weights cannot have: take another copy.")


def load_config(path: Path) -> Any:
    """The config of a model folder; ``None`` if Transformers does not know the model."""
    try:
        return transformers.AutoConfig.from_pretrained(path)
    except ValueError as error:
        if "model_type" in str(error) or "does not recognize" in str(error) or "trust_remote_code" in str(error):
            return None
        raise BoneError(f"{path / 'config.json'} is no model config ({brief(error)}).") from error
    except Exception as error:
        raise BoneError(f"{path / 'config.json'} is no model config ({brief(error)}).") from error
