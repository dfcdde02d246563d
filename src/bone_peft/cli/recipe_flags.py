"""The flags of ``bone train`` as a recipe, for the commands that take them."""

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from typer.models import OptionInfo

from bone_peft.errors import BoneError

if TYPE_CHECKING:
    from bone_peft.runs.training import Recipe

# The flag that sets it, to the place in the recipe.
_PLACES = {
    "base": "base",
    "method": "method",
    "data": "data",
    "eval_data": "eval_data",
    "eval_split": "eval_split",
    "keep": "keep",
    "early_stopping": "early_stopping",
    "fields": "fields",
    "chat": "chat",
    "template": "template",
    "chat_template": "chat_template",
    "train_on": "train_on",
    "out": "out",
    "log": "log",
    "push_to_hub": "push_to_hub",
    "seed": "seed",
    "quantize": "quantize",
    "trust_remote_code": "trust_remote_code",
    "continue_from": "continue_from",
    "r": "adapter.r",
    "init_weights": "adapter.init_weights",
    "share": "adapter.share",
    "bottleneck_size": "adapter.bottleneck_size",
    "bottleneck_alpha": "adapter.bottleneck_alpha",
    "bottleneck_dropout": "adapter.bottleneck_dropout",
    "dropout": "adapter.bone_dropout",
    "target_modules": "adapter.target_modules",
    "lr": "training.learning_rate",
    "steps": "training.max_steps",
    "epochs": "training.num_train_epochs",
    "batch_size": "training.per_device_train_batch_size",
    "grad_accum": "training.gradient_accumulation_steps",
    "max_length": "training.max_length",
    "packing": "training.packing",
    "context_chunk": "context_chunk",
}


def laid_over(recipe: "Recipe", given: Mapping[str, Any]) -> "Recipe":
    """Return ``recipe`` with the flags laid over it.

    Args:
        given: the arguments of ``bone train`` by name; None is a flag that was not given.

    Raises:
        BoneError: a value that no recipe takes there.
    """
    from bone_peft.runs.training.recipe import parse_value

    readers: dict[str, Callable[[Any], Any]] = {
        "init_weights": parse_value,
        "target_modules": modules,
        "data": one_or_more,
        "eval_data": one_or_more,
    }
    flags = {name: given[name] for name in _PLACES if given.get(name) not in (None, [])}
    values = {_PLACES[name]: readers.get(name, lambda value: value)(value) for name, value in flags.items()}
    if given.get("data_weight"):
        values["data"] = _weighted(given.get("data") or [], given["data_weight"])
    if given.get("bf16") is not None:
        values["dtype"] = "bfloat16" if given["bf16"] else "float32"
    if given.get("strategy", "auto") != "auto":
        values["tensor_parallel"] = given["strategy"] == "tp"
    values |= dict(_setting(text) for text in given.get("settings") or [])
    return recipe.with_values(values, where="the command line")


def takes_flags_of(command: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have another command take every flag of ``command`` too; those that it does not name itself show in no help."""

    def taking(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function).parameters
        kept = [p for p in own.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [p for p in inspect.signature(command).parameters.values() if p.kind is p.KEYWORD_ONLY]
        every = [*kept, *(_hidden(option) for option in options if option.name not in own)]

        @wraps(function)
        def run(**given: Any) -> Any:
            return function(**given)

        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        return run

    return taking


def _hidden(option: inspect.Parameter) -> inspect.Parameter:
    if get_origin(option.annotation) is Annotated:
        kind, info = get_args(option.annotation)
        return option.replace(annotation=Annotated[kind, _not_shown(info)])
    return option.replace(default=_not_shown(option.default))


def _not_shown(info: OptionInfo) -> OptionInfo:
    info = copy.copy(info)
    info.hidden = True
    return info


def modules(text: str) -> str | list[str]:
    """``q_proj,v_proj`` is a list; anything that is more than names and commas is a regular expression."""
    return text.split(",") if re.fullmatch(r"[\w.]+(,[\w.]+)*", text) else text


def one_or_more(sources: list[str]) -> str | list[str]:
    """Sources as a recipe has them."""
    return sources[0] if len(sources) == 1 else sources


def _weighted(sources: list[str], weights: list[float]) -> dict[str, float]:
    if len(sources) != len(weights) or len(set(sources)) != len(sources):
        raise BoneError(f"Give one --data-weight for each --data: {len(weights)} weights, {len(sources)} sources.")
    return dict(zip(sources, weights, strict=True))


def _setting(text: str) -> tuple[str, Any]:
    from bone_peft.runs.training.recipe import parse_value

    key, equals, value = text.partition("=")
    if not equals:
        raise BoneError(f"--set {text!r} has no =; write --set training.weight_decay=0.01")
    return key, parse_value(value)
