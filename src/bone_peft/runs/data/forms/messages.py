"""A column ``messages`` of a role and a content each, as OpenAI, Transformers and TRL have it; ``tools`` beside it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .reading import Reading, converted
from .talk import talk


def recognizes(names: Collection[str]) -> bool:
    return "messages" in names


def rows(dataset: Any, reading: Reading) -> Any:
    reading.need_chat()
    return converted(
        dataset, lambda row, index: talk(row["messages"], row.get("tools"), reading, index), chat=True, tools=True
    )
