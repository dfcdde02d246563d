"""Messages of a chat: which are taken, and where the last answer is."""

from __future__ import annotations

import json
import reprlib
from typing import Any

from .reading import Reading

ROLES = ("system", "developer", "user", "assistant", "tool")


def is_talk(value: Any) -> bool:
    """Whether a field holds messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def talk(messages: Any, tools: Any, reading: Reading, index: int) -> dict[str, Any]:
    """The row of a chat: what stands before its last answer, and that answer. What follows it is left out.

    Raises:
        BoneError: no messages, a role that no chat has, a message that says nothing, or no answer to anything.
    """
    kept = [_message(message, reading, index) for message in _listed(messages, reading, index)]
    while kept and kept[-1]["role"] != "assistant":
        kept.pop()
    if len(kept) < 2:
        raise reading.fault(
            index,
            "messages must each have a role and a content of text, with an answer (role assistant) to what stands "
            f"before it; found {reprlib.repr(messages)}.",
        )
    row = {"prompt": kept[:-1], "completion": kept[-1:]}
    return row if tools is None else row | {"tools": _tools(tools, reading, index)}


def with_system(messages: Any, system: Any) -> Any:
    """Messages after what a column ``system`` beside them says, if they have no such message themselves."""
    if not system or not isinstance(messages, list):
        return messages
    if any(isinstance(message, dict) and message.get("role") == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _listed(messages: Any, reading: Reading, index: int) -> list[Any]:
    if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
        return messages
    raise reading.fault(index, f"messages must be a list of a role and a content each, found {reprlib.repr(messages)}.")


def _message(message: dict[str, Any], reading: Reading, index: int) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise reading.fault(
            index, f"a message has the role {reprlib.repr(role)}, and messages are of {', '.join(ROLES)}."
        )
    if isinstance(content, list):
        content = _joined(content)
        message = {**message, "content": content}
    if isinstance(content, int | float) and not isinstance(content, bool):
        content = str(content)
        message = {**message, "content": content}
    weight = message.get("weight")
    if weight is not None and (weight not in (0, 1) or isinstance(weight, str)):
        raise reading.fault(index, f"weight must be 0 (not learned) or 1, found {reprlib.repr(weight)}.")
    calls = role == "assistant" and bool(message.get("tool_calls"))
    if calls and not isinstance(message["tool_calls"], list):
        raise reading.fault(index, f"tool_calls must be a list, found {reprlib.repr(message['tool_calls'])}.")
    if calls:
        message = {**message, "tool_calls": [_call(call) for call in message["tool_calls"]]}
    if not (isinstance(content, str) and (content or role != "assistant" or calls)) and not (content is None and calls):
        raise reading.fault(
            index,
            f"messages must each have a role and a content of text, and this one of {role} has "
            f"{reprlib.repr(message.get('content'))}.",
        )
    return message


def _call(call: Any) -> Any:
    """A call with its arguments as an object, as templates want them; OpenAI writes that as JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _joined(parts: list[Any]) -> Any:
    """Content in parts as one text, if all of them are text."""
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    said = [text for text in texts if isinstance(text, str)]
    return "".join(said) if len(said) == len(parts) else parts


def _tools(tools: Any, reading: Reading, index: int) -> Any:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools else []
        except ValueError:
            tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise reading.fault(index, "tools must be a list of objects, or that as JSON text.")
    return tools
