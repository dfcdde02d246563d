"""A chat template in the place of a base's own: a shipped one, a file, or the one that an adapter was trained with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.io.place import expanded

from ..adapters import adapter_at

FILE = "chat_template.jinja"
"""In the folder of a model or an adapter, as Transformers writes it."""

_TEMPLATES = resources.files(__package__) / "templates"
SHIPPED = tuple(sorted(file.name.removesuffix(".jinja") for file in _TEMPLATES.iterdir()))
"""Files of that folder. Answers end with the tokenizer's own end, at which generation stops."""


def set_template(tokenizer: Any, name: str) -> None:
    """Give a tokenizer one of :data:`SHIPPED`, or what a file holds.

    Raises:
        BoneError: there is no such template, or it uses an end that the tokenizer lacks.
    """
    if name in SHIPPED:
        if not tokenizer.eos_token:
            raise BoneError(f"This base's tokenizer has no end of text, which {name} ends answers with.")
        tokenizer.chat_template = (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
        return
    try:
        tokenizer.chat_template = expanded(name).read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        raise BoneError(
            f"chat_template {name!r} is neither {' nor '.join(SHIPPED)}, nor a file of text: name one of them."
        ) from None


def take_template(tokenizer: Any, adapter: str | Path | None) -> None:
    """Have a base's tokenizer speak as the adapter was trained to, if its folder (or its run's) says how."""
    if adapter is not None and (text := _in_folder(adapter_at(adapter))) is not None:
        tokenizer.chat_template = text


def hand_on(adapters: Iterable[str | Path], model: Path) -> None:
    """Put an adapter's template into a model's folder, if the model has another one or none."""
    for text in filter(None, map(_in_folder, map(adapter_at, adapters))):
        if text != _of_model(model):
            (model / FILE).write_text(text, encoding="utf-8")


def _in_folder(folder: Path) -> str | None:
    try:
        return (folder / FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return None


def _of_model(folder: Path) -> Any:
    try:
        return _in_folder(folder) or json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
