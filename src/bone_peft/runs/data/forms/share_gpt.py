"""A column ``conversations`` of ``from`` and ``value``, as ShareGPT has it; or of a role and a content each."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from .reading import Reading, converted
from .talk import talk, with_system

WHAT = "ShareGPT's chats"

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
_CALL = "function_call"


def recognizes(names: Collection[str]) -> bool:
    return "conversations" in names and "messages" not in names


def rows(dataset: Any, reading: Reading) -> Any:
    reading.need_chat()

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        said = row["conversations"]
        messages = [as_message(m, reading, index) for m in said] if isinstance(said, list) else said
        return talk(with_system(messages, row.get("system")), row.get("tools"), reading, index)

    return converted(dataset, convert, chat=True, tools=True)


def as_message(message: Any, reading: Reading, index: int) -> Any:
    """A message of ``from`` and ``value`` with a role and a content; what has none is returned as it is."""
    if not isinstance(message, dict) or "from" not in message:
        return message
    said, value = message["from"], message.get("value")
    weight = {"weight": message["weight"]} if "weight" in message else {}
    if said == _CALL:
        call = {"type": "function", "function": _call(value, reading, index)}
        return {"role": "assistant", "tool_calls": [call], **weight}
    return {"role": _ROLES.get(said, said) if isinstance(said, str) else said, "content": value, **weight}


def _call(value: Any, reading: Reading, index: int) -> dict[str, Any]:
    try:
        call = json.loads(value) if isinstance(value, str) else value
        return {"name": call["name"], "arguments": call["arguments"]}
    except (ValueError, KeyError, TypeError):
        raise reading.fault(index, "a function_call must hold a JSON object of a name and arguments.") from None
