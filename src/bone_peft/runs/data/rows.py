"""From a table's own columns to ``prompt`` and ``completion``."""

import math
import reprlib
from typing import Any

from bone_peft.errors import BoneError


def from_columns(
    dataset: Any, source: str, *, fields: tuple[str, str] | list[str] | None, chat: bool, template: str | None
) -> Any:
    """Two named columns of text; as chat, one user and one assistant message."""
    prompt_field, completion_field = fields or ("prompt", "completion")
    missing = [name for name in (prompt_field, completion_field) if name not in dataset.column_names]
    if missing:
        raise BoneError(
            f"{source} has no field {' or '.join(map(repr, missing))}; "
            f"it has {', '.join(dataset.column_names)}: name two of them with --fields PROMPT COMPLETION."
        )
    if template is not None and "{prompt}" not in template:
        raise BoneError("template has no {prompt} in it, so the prompt would be lost; add it where it belongs.")
    if template is not None and template.count("{completion}") > 1:
        raise BoneError("template has {completion} in it more than once; the answer is learned in one place.")

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        prompt = _text(row[prompt_field], prompt_field, source, index)
        completion = _text(row[completion_field], completion_field, source, index)
        if template is not None:
            prompt, completion = _fill(template, prompt, completion)
        if not chat:
            return {"prompt": prompt, "completion": completion}
        return {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": completion}],
        }

    return _convert(dataset, convert)


def from_messages(dataset: Any, source: str) -> Any:
    """A ``messages`` column: the last message is learned, all before it is the prompt."""

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        messages = row["messages"]
        if not _is_conversation(messages):
            raise BoneError(
                f"Row {index + 1} of {source}: messages must each have a role and a content of text, and end with an "
                f"answer (role assistant) to what stands before it; found {reprlib.repr(messages)}."
            )
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        return {"prompt": plain[:-1], "completion": plain[-1:]}

    return _convert(dataset, convert)


def from_text(dataset: Any, source: str, *, start: str) -> Any:
    """A ``text`` column of documents, learned from their first word: the prompt is the end of the one before."""

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        return {"prompt": start, "completion": _text(row["text"], "text", source, index)}

    return _convert(dataset, convert)


def _fill(template: str, prompt: str, completion: str) -> tuple[str, str]:
    """Prompt and completion in their template; the blank before ``{completion}`` is learned, as text is tokenized."""
    before, marker, after = template.partition("{completion}")
    asked = before.rstrip() if marker else before
    answered = before[len(asked) :] + completion + after
    return asked.replace("{prompt}", prompt), answered


def _convert(dataset: Any, convert: Any) -> Any:
    return dataset.map(convert, with_indices=True, remove_columns=dataset.column_names, keep_in_memory=True)


def _text(value: Any, field: str, source: str, index: int) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise BoneError(
        f"Row {index + 1} of {source}: field {field!r} must hold text, found {reprlib.repr(value)}; mend or drop it."
    )


def _is_conversation(messages: Any) -> bool:
    if not isinstance(messages, list) or len(messages) < 2:
        return False
    said = all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    return said and messages[-1]["role"] == "assistant" and messages[-1]["content"] != ""
