"""A column ``text`` of whole documents, learned from their first word."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .reading import Reading, converted

WHAT = "whole documents"


def recognizes(names: Collection[str]) -> bool:
    others = {"prompt", "messages", "conversations"} & set(names) or {"instruction", "output"} <= set(names)
    return "text" in names and not others


def rows(dataset: Any, reading: Reading) -> Any:
    """The prompt is the end of the document before."""
    reading.refuse_template("whole documents (`text`)")

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        return {"prompt": reading.start, "completion": reading.text(row, "text", index)}

    return converted(dataset, convert, chat=False)
