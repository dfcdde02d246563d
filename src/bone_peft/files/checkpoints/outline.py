"""The outline of a Transformers model: names and shapes on the meta device, no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from bone_peft.errors import BoneError
from bone_peft.io.names import brief, shown
from bone_peft.method.compat.checkpoint_names import EXPERTS_ARE_MODULES, expert_places, places
from bone_peft.method.compat.tied_names import tied_weights
from bone_peft.method.compat.zero3 import not_partitioned
from bone_peft.method.tuner.experts.fused import FusedLinear
from bone_peft.method.tuner.experts.kinds import kind_of

from ..remote_code import not_run
from . import bounded

# Above every vocabulary: no list of a config that is judged is longer, and no model has as many layers.
_SMALL = 2**20
# Above every size of a weight. A list of so many takes 256 MiB.
_LARGE = 2**25

_AUTO = {
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}


_PARTS_PER_SECOND = 5_000
"""That any processor makes, where experts are modules: half a minute, for the largest models."""


@dataclass
class Names:
    """Which parameter each tensor of a checkpoint becomes.

    Attributes:
        parameters: parameter name by checkpoint name, where a tensor becomes one parameter as it is.
        converted: names of parameters that Transformers computes out of several tensors, or of parts of one.
        experts: for each tensor that is a part of one expert's matrix: the parameter, the expert, the part, and of how
            many.
    """

    parameters: dict[str, str] = field(default_factory=dict)
    converted: set[str] = field(default_factory=set)
    experts: dict[str, tuple[str, int, int, int]] = field(default_factory=dict)


def parts(tensors: int) -> int:
    """How many modules and parameters a model with so many stored tensors may have. Five times as many are known."""
    return 20 * tensors + 10_000


def outline(
    config: Any,
    task_type: str | None = None,
    most: int = bounded.PARTS,
    where: Path | str = "The config",
    trust_remote_code: bool = False,
) -> nn.Module:
    """The model that ``config`` describes, on the meta device: a moment, and no memory.

    Raises:
        BoneError: Transformers cannot build it, or it has more modules and parameters than ``most``.
    """

    own = _of_map(config) if trust_remote_code else None
    cls = _AUTO.get(task_type or "") or own or _named(config.architectures) or transformers.AutoModelForCausalLM
    # The first of its kind imports its code, which is no work of this config's.
    getattr(cls, "_model_mapping", {}).get(type(config), None)

    def build() -> nn.Module:
        from_config = getattr(cls, "_from_config", None) or partial(
            cls.from_config, trust_remote_code=trust_remote_code
        )
        with not_partitioned(), torch.device("meta"):
            return from_config(config, dtype=config.dtype or torch.float32).eval()

    try:
        with not_run(where):
            seconds = max(bounded.SECONDS, most // _PARTS_PER_SECOND) if EXPERTS_ARE_MODULES else None
            return bounded.bounded(build, where, most, seconds)
    except BoneError:
        raise
    except Exception as error:
        raise BoneError(
            f"Transformers cannot build a {config.model_type} model from this config ({brief(error)})."
        ) from error


def own_config(base: Path | str) -> Any:
    """The config of a model that comes with its own code, which is run."""
    try:
        return transformers.AutoConfig.from_pretrained(base, trust_remote_code=True)
    except Exception as error:
        raise BoneError(f"The config of {base} cannot be read ({brief(error)}).") from error


def _of_map(config: Any) -> Any:
    """The Auto class that the code of a model is for."""
    names = (name for name in getattr(config, "auto_map", None) or () if name.startswith("AutoModel"))
    return getattr(transformers, next(names, ""), None)


def _named(architectures: Any) -> Any:
    """The model class that a config names first, if Transformers has it."""
    name = architectures[0] if isinstance(architectures, list) and architectures else ""
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    return cls if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel) else None


def parameter_names(model: nn.Module, stored: Iterable[str]) -> Names:
    """Follow the names of a checkpoint to the names of the model's parameters, as Transformers does when it loads."""
    stored = list(stored)
    names = Names()
    weights = [name.removesuffix(".weight") for name in stored if name.endswith(".weight")]
    names.experts = {f"{name}.weight": place for name, place in expert_places(model, weights).items()}
    for name, parameter, converted in places(model, stored):
        if converted is None:
            names.parameters[name] = parameter
        else:
            names.converted |= converted
    return names


def shape(model: nn.Module, module: str) -> tuple[int, ...] | None:
    """``(out, in)`` of a linear module, ``(experts, out, in)`` of experts, ``None`` if there is none of this name."""
    if (experts := fused(model, module)) is not None:
        return experts.experts, experts.out_features, experts.in_features
    try:
        found = model.get_submodule(module)
    except AttributeError:
        return None
    if isinstance(found, nn.Linear):
        return found.out_features, found.in_features
    if isinstance(found, Conv1D):
        return found.nf, found.weight.shape[0]
    return None


def fused(model: nn.Module, name: str) -> FusedLinear | None:
    """The parameter ``name`` as a layer of experts, if it is one."""
    path, _, key = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    kind = kind_of(module)
    return None if kind is None else kind.projections(module).get(key)


def is_transposed(model: nn.Module, module: str) -> bool:
    """Whether the module keeps its weight as ``(in, out)``, as GPT-2 does."""
    return isinstance(model.get_submodule(module), Conv1D)


def ties(model: nn.Module) -> dict[str, str]:
    """Parameters that are others by another name: ``{"lm_head.weight": "model.embed_tokens.weight"}``."""
    tied = tied_weights(model)
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


def check_stored(model: nn.Module, names: Names, shapes: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Raise a BoneError if the checkpoint has other shapes than the model, or nothing at all of one of its layers.

    Args:
        model: the outline.
        names: of the checkpoint's tensors.
        shapes: of the checkpoint's tensors, by their names there.
        where: the config is, to be named in errors.
    """
    known = model.state_dict()
    for name, parameter in names.parameters.items():
        if tuple(known[parameter].shape) != shapes[name]:
            raise BoneError(
                f"{where} asks for {parameter} of shape {tuple(known[parameter].shape)}, and the weights hold it as "
                f"{shapes[name]}: they are of different models."
            )
    for name, (parameter, expert, _, parts) in names.experts.items():
        experts = fused(model, parameter)
        if experts is not None:
            wanted = (experts.out_features // parts, experts.in_features)
            if shapes[name] != wanted or expert >= experts.experts:
                raise BoneError(
                    f"{where} asks for {experts.experts} experts of shape {wanted} in {parameter}, and the weights "
                    f"hold {name} of shape {shapes[name]}: they are of different models."
                )
    tied = ties(model)
    stored = {*names.parameters.values(), *names.converted}
    stored |= {name for tie in tied.items() if stored.intersection(tie) for name in tie}
    for path, stack in model.named_modules():
        if isinstance(stack, nn.ModuleList):
            layers = [{f"{path}.{i}.{name}" for name, _ in layer.named_parameters()} for i, layer in enumerate(stack)]
            held = [not layer or not layer.isdisjoint(stored) for layer in layers]
            if any(held) and not all(held):
                raise BoneError(
                    f"{where} asks for {path}.{held.index(False)}, and the weights hold nothing of it: they are of "
                    "different models."
                )


def check_size(model: nn.Module, numbers: int, where: Path | str) -> None:
    """Raise a BoneError if the model has far more parameters than the weights hold numbers: they would be made up.

    Args:
        model: the outline.
        numbers: in the files.
        where: the model is described, to be named in errors.
    """
    wanted = sum(parameter.numel() for parameter in model.parameters())
    # Weights that are tied or shared are stored once, and heads may be new.
    if wanted > 4 * numbers + 10**7:
        raise BoneError(
            f"{where} asks for a model of {wanted:,} parameters, and the weights hold {numbers:,}: they are of "
            "different models."
        )


def load_config(
    settings: dict[str, Any], where: Path | str, task_type: str | None = None, most: int = bounded.PARTS
) -> Any:
    """The config that ``settings`` say; ``None`` if Transformers does not know the model.

    Large numbers are tried smaller first, with an outline: if one of them counts layers, the outline has too many.

    Args:
        settings: of a ``config.json``.
        where: it was found.
        task_type: what the model is used for.
        most: modules and parameters that the model may have.

    Raises:
        BoneError: they are no settings, or ask for more than any model has.
    """
    if str(settings.get("model_type")) not in transformers.CONFIG_MAPPING:
        return None
    small = bounded.clamped(settings, _SMALL)
    if small == settings:
        return _config(settings, where)
    tried = f"{where} ({', '.join(islice(_large(settings), 3))})"
    outline(_config(small, tried), task_type, most, tried)
    return _config(bounded.clamped(settings, _LARGE), where)


def _config(settings: dict[str, Any], where: Path | str) -> Any:
    # Its code is imported, which is no work of this config's.
    _ = transformers.CONFIG_MAPPING[settings["model_type"]]
    # By itself, so that neither code nor other configs of its folder count.
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(settings))
        try:
            return bounded.bounded(
                lambda: transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False), where
            )
        except BoneError:
            raise
        except Exception as error:
            raise BoneError(f"{where} is no model config ({brief(error)}).") from error


def _large(settings: dict[str, Any]) -> Iterator[str]:
    """The numbers that are tried smaller first, for people to read."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _large(value)
        elif isinstance(value, int) and value > _SMALL:
            yield shown(f"{name}={value}")
