"""``Reading``: how a table is to be read, and what every form does with its rows."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bone_peft.errors import BoneError


@dataclass(frozen=True)
class Reading:
    """How the rows of one source are wanted.

    Attributes:
        source: its name, for sentences.
        chat: whether they become messages.
        fields: names of the prompt and the completion column, if they were given.
        template: plain text around the prompt, and perhaps the completion.
        start: the prompt of a document.
        choices: whether the choices of questions are wanted beside the right one.
        pairs: whether pairs of answers are wanted, a chosen and a rejected one.
    """

    source: str
    chat: bool
    fields: Sequence[str] | None = None
    template: str | None = None
    start: str = ""
    choices: bool = False
    pairs: bool = False

    def refuse_template(self, what: str) -> None:
        if self.template is not None:
            raise BoneError(f"{self.source} holds {what}, and template is for a prompt and an answer: leave it out.")

    def need_chat(self) -> None:
        if not self.chat:
            raise BoneError(
                f"{self.source} holds chat messages, which need a base with a chat template and no --no-chat; "
                "name plain columns with --fields instead."
            )
        self.refuse_template("chat messages")

    def text(self, row: dict[str, Any], field: str, index: int) -> str:
        """What a field holds, if that is text or a number."""
        value = row[field]
        if isinstance(value, str) and value:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return str(value)
        raise self.fault(index, f"field {field!r} must hold text, found {reprlib.repr(value)}; mend or drop it.")

    def fault(self, index: int, sentence: str) -> BoneError:
        return BoneError(f"Row {index + 1} of {self.source}: {sentence}")


def converted(
    dataset: Any,
    convert: Callable[[dict[str, Any], int], dict[str, Any]],
    *,
    chat: bool,
    tools: bool = False,
    choices: bool = False,
    columns: Sequence[str] = ("prompt", "completion"),
) -> Any:
    """Each row by ``convert(row, index)``; messages and ``tools``, of whatever parts, stay as they are written."""
    from datasets import Features, Json, List, Value

    kind = List(Json()) if chat else Value("string")
    features: dict[str, Any] = dict.fromkeys(columns, kind)
    if tools and "tools" in dataset.column_names:
        features["tools"] = List(Json())
    if choices:
        features["choices"] = List(Value("string"))
    filled_up = [name for name, kind in dataset.features.items() if _is_of_objects(kind)]

    def from_row(row: dict[str, Any], index: int) -> dict[str, Any]:
        found = convert(row | {name: _there(row[name]) for name in filled_up}, index)
        return found | ({"tools": None} if "tools" in features and "tools" not in found else {})

    return dataset.map(
        from_row,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        keep_in_memory=True,
    )


def _is_of_objects(kind: Any) -> bool:
    """Whether a column has objects with the same parts in each row, or lists of them."""
    return isinstance(kind, dict) or (hasattr(kind, "feature") and _is_of_objects(kind.feature))


def _there(value: Any) -> Any:
    """Without the parts that a table of one kind of objects holds for other rows."""
    if isinstance(value, dict):
        return {name: _there(part) for name, part in value.items() if part is not None}
    return [_there(part) for part in value] if isinstance(value, list) else value
