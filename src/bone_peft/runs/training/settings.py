"""The sections of a recipe: every value is looked at before anything is loaded, written or deleted."""

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.version import Version

from bone_peft.errors import BoneError
from bone_peft.io.names import brief

from .methods import METHODS, training_method

_OLDEST = {"TRL": "1.16", "Transformers": "5.3"}  # their trainers have the places that a run goes in at

# Where a run differs from what TRL does when nothing is said, whatever it learns (``TrainingMethod.usual``: by that).
DEFAULTS: dict[str, Any] = {
    "bf16": False,  # the base already has `dtype`; autocast on top would only add casts
    "logging_steps": 1,
    "save_total_limit": 2,
}
# What the run decides, so a recipe cannot.
_NOT_IN_ADAPTER = {
    "peft_type": "it is Bone",
    "auto_mapping": "it is Bone",
    "base_model_name_or_path": "name the base as base (--base)",
    "revision": "name the base as base (--base)",
    "peft_version": "it is the installed one",
    "inference_mode": "bone eval and bone generate are for that",
}
_NO_SCALE = "Bone has no scale beside its blocks, so leave it out; the learning rate alone says how much is learned"
_OF_LORA = {
    **dict.fromkeys(("alpha", "lora_alpha", "alpha_pattern", "scaling", "use_rslora"), _NO_SCALE),
    **dict.fromkeys(("lora_r", "rank", "lora_rank", "lora_dim"), "Bone's blocks have the size adapter.r (--r)"),
    **dict.fromkeys(("lora_dropout", "dropout"), "Bone's is adapter.bone_dropout (--dropout)"),
    "lora_target_modules": "they are adapter.target_modules (--target-modules) here",
    "use_dora": "Bone has no such part; adapter.init_weights=bat is its stronger form",
    "init_lora_weights": "Bone's is adapter.init_weights: true, false or bat",
}
_NOT_IN_TRAINING = {
    "output_dir": "name the folder as out (--out)",
    "report_to": "it logs to TensorBoard, and to what log (--log) names",
    "seed": "say it as seed (--seed)",
    "disable_tqdm": "it shows its own progress",
    "logging_nan_inf_filter": "it stops at the first loss that is no number",
    "resume_from_checkpoint": "bone train --resume goes on from the last one",
    "model_init_kwargs": "say it as dtype and quantize",
    "trust_remote_code": "say it as --trust-remote-code",
    "dataset_text_field": "name the columns as fields (--fields)",
    "dataset_kwargs": "it prepares its rows itself",
    "hub_token": "set the environment variable HF_TOKEN, which no file keeps",
    "local_rank": "the launcher says it",
    "do_train": "bone train trains",
    "do_predict": "bone eval is for that",
}
# Numbers are zero or more, but for these: (least, most).
_MANY = 2**31 - 1
_SHARE = (0, 1 - 1e-9)
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "eval_accumulation_steps",
            "torch_empty_cache_steps",
            "save_total_limit",
            "max_length",
            "pad_to_multiple_of",
            "dataloader_prefetch_factor",
            "ddp_bucket_cap_mb",
            "ddp_timeout",
        ),
        (1, _MANY),
    ),
    **dict.fromkeys(("num_train_epochs", "logging_steps", "save_steps", "eval_steps"), (math.ulp(0), _MANY)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), _SHARE),
    "dataset_num_proc": (1, 256),
    "dataloader_num_workers": (0, 256),
    "data_seed": (0, 2**32 - 1),
    "max_steps": (-1, _MANY),
    "learning_rate": (math.ulp(0), math.inf),
}
# The Trainer passes over what it does not know here.
_CHOICES = {
    "train_sampling_strategy": typing.Literal["random", "sequential", "group_by_length", "batch_rebalance"],
    "packing_strategy": typing.Literal["bfd", "bfd_split", "wrapped"],
}
_OFF = ("save_strategy", "eval_strategy", "logging_strategy")  # their "no" is false in YAML


def checked_variant(given: dict[str, Any]) -> str:
    """The name of the variant that an adapter with these options is of.

    Raises:
        BoneError: no adapter can have them, whatever the base.
    """
    from bone_peft.method import BoneConfig

    _check_section("adapter", given, BoneConfig, _NOT_IN_ADAPTER)
    return str(adapter_config(given).variant.name)


def adapter_config(given: dict[str, Any]) -> Any:
    """The :class:`bone_peft.BoneConfig` of a run."""
    from bone_peft.method import BoneConfig

    try:
        return BoneConfig(**{"task_type": "CAUSAL_LM", **given})
    except BoneError:
        raise
    except Exception as error:  # PEFT checks a config in its own ways
        raise cannot_train(error) from error


def config_of(method: str = "sft") -> type:
    """TRL's class of settings for a method, if TRL is new enough."""
    import transformers
    import trl

    for package, oldest in _OLDEST.items():
        installed = {"TRL": trl, "Transformers": transformers}[package].__version__
        if Version(installed) < Version(oldest):
            raise BoneError(
                f"Training needs {package} {oldest} or newer, and {installed} is installed: pip install --upgrade "
                "'bone-peft[train]'."
            )
    return training_method(method).config()


def usual_adapter(given: dict[str, Any]) -> dict[str, Any]:
    """``given`` with what an adapter has where nothing is said: all linear layers.

    What goes with names alone (``layers_to_transform``) is left with those of the base's family.
    """
    is_said = {"target_modules", "target_parameters", "layers_to_transform", "layers_pattern"} & given.keys()
    return given if is_said else given | {"target_modules": "all-linear"}


def checked_training(given: dict[str, Any], method: str = "sft", variant: str = "bone") -> dict[str, Any]:
    """``given`` with a run's own defaults; every value has its setting's type, and every number its range."""
    usual = _usual(method, variant) | given
    whole = {key: "no" if key in _OFF and value is False else value for key, value in usual.items()}
    config = config_of(method)
    _check_method(whole, config, method)
    _check_section("training", whole, config, _NOT_IN_TRAINING)
    for name, value in whole.items():
        _check_range(name, value)
    if "per_device_train_batch_size" in whole:  # held-out rows take no more memory than those that are learned
        whole.setdefault("per_device_eval_batch_size", whole["per_device_train_batch_size"])
    return whole


def _check_method(given: Iterable[str], config: type, method: str) -> None:
    """Raise a BoneError for a setting that another method has."""
    own = _names(config)
    for name in (name for name in given if name not in own):
        for other in METHODS:
            if name in _names(config_of(other)):
                raise BoneError(
                    f"training.{name} is a setting of method {other}, and the method here is {method}: leave it out, "
                    f"or say method: {other} (--method {other})."
                )


def _names(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _usual(method: str, variant: str) -> dict[str, Any]:
    return DEFAULTS | training_method(method).usual(variant)


def usual_training(names: Iterable[str], method: str = "sft", variant: str = "bone") -> dict[str, Any]:
    """What these settings are in a run whose recipe does not name them."""
    usual = {field.name: field.default for field in dataclasses.fields(config_of(method))} | _usual(method, variant)
    return {name: getattr(usual[name], "value", usual[name]) for name in names}


def rows_and_tokens(given: dict[str, Any], method: str = "sft") -> tuple[int, int | None]:
    """How many rows a step has in a process, and of how many tokens at most; None is any number.

    Raises:
        BoneError: a setting that there is not, or of another type.
    """
    told = checked_training(given, method)
    usual = usual_training(("per_device_train_batch_size", "max_length"), method)
    rows, tokens = (told.get(name, value) for name, value in usual.items())
    return rows, tokens


def arguments_of(
    settings: dict[str, Any], seed: int, output_dir: Path, tensor_parallel: bool = False, method: str = "sft"
) -> Any:
    """TRL's settings of a run, or a BoneError that says which of them do not go together."""
    config = config_of(method)
    if may_checkpoint(settings, tensor_parallel):
        settings = {"gradient_checkpointing": False, **settings}
    import torch

    if not torch.accelerator.is_available():
        settings = {"use_cpu": True, **settings}  # else Accelerate leaves each of several processes by itself
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, warns of what it finds else
    try:
        arguments: Any = config(
            output_dir=str(output_dir),
            seed=seed,
            report_to="none",
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            **settings,
        )
        # A process that sees several GPUs trains on one: those that share a step are started by Accelerate.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        return arguments
    except Exception as error:  # a setting may ask for packages, files, devices or an environment of its own
        raise cannot_train(error) from error


def may_checkpoint(settings: dict[str, Any], tensor_parallel: bool) -> bool:
    """Whether the run decides on gradient checkpointing: nobody else has, and the model is whole in each process."""
    sharded = {"fsdp", "deepspeed"} & {name for name, value in settings.items() if value}
    launched = any(os.environ.get(f"ACCELERATE_USE_{kind}", "false") != "false" for kind in ("FSDP", "DEEPSPEED"))
    given = any(name.startswith(("gradient_checkpointing", "activation_checkpointing")) for name in settings)
    return not (given or sharded or launched or tensor_parallel)


def cannot_train(error: Exception) -> BoneError:
    """What a library says against the settings, as our sentence."""
    return BoneError(f"These settings cannot be trained with: {brief(error).rstrip(' .')}.")


def check_held_out(training: dict[str, Any], given: bool) -> None:
    """Raise a BoneError if settings ask for held-out rows that nobody gave."""
    asked = [
        name
        for name in ("do_eval", "eval_on_start", "load_best_model_at_end", "eval_strategy")
        if training.get(name, False) not in (False, "no")
    ]
    if asked and not given:
        raise BoneError(f"training.{asked[0]} needs held-out rows; name them as eval_data (--eval-data).")


def _check_section(section: str, given: dict[str, Any], config: type, not_here: dict[str, str]) -> None:
    kinds = typing.get_type_hints(config)
    known = [f"{section}.{field.name}" for field in dataclasses.fields(config)]
    for name, value in given.items():
        if name in not_here:
            raise BoneError(f"{section}.{name} is the run's own to decide: {not_here[name]}.")
        if section == "adapter" and name in _OF_LORA:
            raise BoneError(f"adapter.{name} is LoRA's: {_OF_LORA[name]}.")
        if f"{section}.{name}" not in known:
            raise unknown_key(f"{section}.{name}", known, "the recipe")
        kind = _CHOICES.get(name, kinds[name])
        if not _fits(value, kind):
            raise BoneError(f"{section}.{name} must be {_in_words(kind)}, found {_short(value)}.")


def unknown_key(key: str, known: Iterable[str], where: str) -> BoneError:
    """A sentence that names the nearest key there is."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.4)
    return BoneError(f"{key!r} in {where} is no recipe key{f'; did you mean {close[0]!r}?' if close else '.'}")


def _check_range(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if name == "max_steps" and (value == 0 or value < -1):
        raise BoneError(f"training.max_steps must be 1 or more, or -1 to go by epochs; found {value}.")
    least, most = _RANGES.get(name, (0, _MANY if isinstance(value, int) else math.inf))
    if not least <= value <= most:
        raise BoneError(f"training.{name} must be {_range_in_words(least, most)}, found {value}.")


def _fits(value: Any, kind: Any) -> bool:
    choices = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in choices)
    if kind is Any:
        return True
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in choices)
    if origin in (list, dict):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return isinstance(value, origin) and all(any(_fits(part, choice) for choice in choices) for part in parts)
    if kind in (int, float):
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return isinstance(value, origin or kind)


def _in_words(kind: Any) -> str:
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(words for choice in choices if (words := _in_words(choice))))
    if origin is typing.Literal:
        return " or ".join(map(repr, choices))
    return _WORDS.get(origin or kind, "")


def _range_in_words(least: float, most: float) -> str:
    lowest = "more than 0" if 0 < least < 1 else f"{least} or more"
    highest = "less than 1" if most == _SHARE[1] else f"at most {most}" if math.isfinite(most) else ""
    return f"{lowest} and {highest}" if highest else lowest


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "`key: value` lines",
    list: "a list",
}
