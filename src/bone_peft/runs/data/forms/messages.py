"""A column ``messages`` of a role and a content each, as OpenAI, Transformers and TRL have it; ``tools`` beside it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .reading import Reading, converted
from .talk import talk, with_system

WHAT = "chats"


def recognizes(names: Collection[str]) -> bool:
    return "messages" in names


def rows(dataset: Any, reading: Reading) -> Any:
    reading.need_chat()

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        return talk(with_system(row["messages"], row.get("system")), row.get("tools"), reading, index)

    return converted(dataset, convert, chat=True, tools=True)
