"""A recipe to begin with: for a base and rows, with a word on every key that one is likely to change."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from peft import PeftConfig

from bone_peft.costs.estimation import estimate
from bone_peft.errors import BoneError, explains_missing_extras
from bone_peft.files.bases import load_tokenizer, set_template
from bone_peft.method import BoneConfig

from ..data import is_chat, look, split, written
from . import settings
from .methods import training_method
from .recipe import Recipe

MARK = "# Begun by bone init"
"""The first line, by which such a file is known."""

_OF_THE_RUN = {
    "base": "The model: a folder, a hub name, a .gguf file, an RWKV .pth file, or package:NAME.",
    "dtype": "Of the frozen base: bfloat16, float16 or float32. What is trained is float32.",
    "quantize": "The base in fewer bits: none, 8bit or 4bit (bitsandbytes).",
    "method": "What is learned: sft, the answers of the rows, or dpo, to prefer the chosen one of two.",
    "data": "The rows: a file, a pattern of files, a `datasets` name, gym:TASK; or a list of them.",
    "fields": "The columns of the prompt and of the completion. Without it, the names of columns tell what rows are.",
    "chat": "Rows become chat messages (true), or stay plain text (false).",
    "chat_template": "How chats are written, for a base without a template: chatml, llama3, or a file.",
    "eval_data": "Held-out rows. The loss on them is told at every tenth of the steps.",
    "eval_split": "A fiftieth of the rows (10 to 200) is held out, and the loss on them told as for eval_data.",
    "keep": "The adapter that is left: the last, or the best on held-out rows.",
    "train_on": "Of a chat, all answers are learned, or the last.",
    "out": "The run's folder: adapter, checkpoints, report.html.",
    "seed": "Of initial values, the order of the rows, and dropout.",
}
_OF_THE_ADAPTER = {
    "r": "Size of the blocks. More of it learns more, and takes more memory.",
    "init_weights": "true is Bone; bat is Bat, which sees the frozen weights. Bottleneck: bottleneck_size for both.",
    "target_modules": "Which layers: all-linear, names as in [q_proj, v_proj], or a regular expression.",
    "bone_dropout": "Share of the adapter's input that is dropped, 0 to 1.",
}
_OF_TRAINING = {
    "learning_rate": "What to try first if it learns too little or too much: twice as much, or half.",
    "num_train_epochs": "Passes over the rows.",
    "max_steps": "Steps instead of passes; -1 goes by passes.",
    "per_device_train_batch_size": "Rows that are computed at once on each device. Memory grows with it.",
    "gradient_accumulation_steps": "Such batches that make one step.",
    "max_length": "Tokens of a row; what is longer is cut.",
    "lr_scheduler_type": "How the learning rate goes on after the warm-up: linear, cosine, constant_with_warmup, ...",
    "warmup_steps": "Steps in which the learning rate grows; below 1, a share of all steps.",
    "weight_decay": "What pulls the adapter's weights to zero.",
}


@explains_missing_extras
def first_recipe(
    base: str,
    data: str | list[str],
    *,
    method: str = Recipe.method,
    eval_data: str | list[str] | None = None,
    fields: Sequence[str] | None = None,
    chat_template: str | None = None,
    out: str = Recipe.out,
    trust_remote_code: bool = False,
) -> str:
    """A recipe as YAML with comments, which :meth:`Recipe.load` reads and ``bone train`` runs as it is.

    The rows are read, and of the base its tokenizer; no weights are.

    Args:
        base, data, method, eval_data, fields, chat_template, out, trust_remote_code: as in a :class:`Recipe`.

    Raises:
        BoneError: the base has no tokenizer, or the rows cannot be read or learned from.
    """
    tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
    if chat_template is not None:
        set_template(tokenizer, chat_template)
    learned = training_method(method)
    reading: dict[str, Any] = {"tokenizer": tokenizer, "fields": fields, "pairs": learned.pairs}
    found = look(data, **reading)
    if eval_data is not None:
        look(eval_data, **reading)
    recipe = Recipe(
        base=base,
        method=method,
        data=data,
        fields=list(fields) if fields else None,
        chat=is_chat(found.rows),
        chat_template=chat_template,
        eval_data=eval_data,
        eval_split=eval_data is None and _can_be_split(found.rows, Recipe.seed),
        out=out,
        trust_remote_code=trust_remote_code,
    )
    has = "a" if getattr(tokenizer, "chat_template", None) else "no"
    of_the_run = {key: words for key, words in _OF_THE_RUN.items() if key not in learned.refused}
    of_training = {**learned.likely, **_OF_TRAINING}
    training = settings.usual_training(of_training, method, BoneConfig().variant.name)
    steps = -(-len(found.rows) // training["per_device_train_batch_size"])
    return "\n".join(
        [
            f"{MARK}: `bone train FILE --dry-run` shows rows as the model sees them, `bone train FILE` trains.",
            f"# {written(data)}: {len(found.rows):,} rows, {found.what}, in columns {', '.join(found.columns)}.",
            f"# {base} has {has} chat template.",
            *_lines({key: getattr(recipe, key) for key in of_the_run}, of_the_run),
            *_others(Recipe, {*_OF_THE_RUN, *learned.refused, "adapter", "training", "trust_remote_code"}),
            *(["trust_remote_code: true"] if trust_remote_code else []),
            "",
            "adapter:",
            *_lines(_adapter(), _OF_THE_ADAPTER, "  ", _reach(base, trust_remote_code)),
            *_others(BoneConfig, {*_OF_THE_ADAPTER, *(field.name for field in dataclasses.fields(PeftConfig))}, "  "),
            "",
            "training:",
            *_lines(training, of_training, "  ", f"A pass over the rows is {steps:,} steps as this stands."),
            "",
            f"  # At their defaults: all else of TRL's {settings.config_of(method).__name__}.",
            "",
        ]
    )


def _can_be_split(rows: Any, seed: int) -> bool:
    try:
        split(rows, seed)
    except BoneError:  # too few, or too many that ask the same
        return False
    return True


def _adapter() -> dict[str, Any]:
    usual = BoneConfig()
    return {key: getattr(usual, key) for key in _OF_THE_ADAPTER} | settings.usual_adapter({})


def _reach(base: str, trust_remote_code: bool) -> str:
    """What all-linear means for a base, if its config says."""
    try:
        found = estimate(base, memory=False, trust_remote_code=trust_remote_code)
    except BoneError:
        return ""
    names = dict.fromkeys(name.rpartition(".")[2] for name in found.layers)
    return f"all-linear are {len(found.layers):,} layers of this base: {', '.join(names)}."


def _lines(values: dict[str, Any], words: dict[str, str], indent: str = "", about: str = "") -> Iterator[str]:
    """A comment and a line for each key; what is None stands in a comment."""
    if about:
        yield f"{indent}# {about}"
    for key, value in values.items():
        style = None if isinstance(value, list | dict) else False  # a list on one line
        line = yaml.safe_dump({key: value}, default_flow_style=style, allow_unicode=True, width=2**20).strip()
        yield from ("", f"{indent}# {words[key]}", indent + (line if value is not None else f"# {key}:"))


def _others(section: type, named: set[str], indent: str = "") -> Iterator[str]:
    """The keys that are not written, by name."""
    names = ", ".join(field.name for field in dataclasses.fields(section) if field.name not in named)
    yield ""
    yield from textwrap.wrap(
        f"At their defaults: {names}.", 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )
