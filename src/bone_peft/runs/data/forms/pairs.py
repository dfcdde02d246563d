"""Columns ``chosen`` and ``rejected``: two answers to one prompt, of text or messages, as TRL has them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bone_peft.errors import BoneError

from .reading import Reading, converted
from .share_gpt import as_message
from .talk import talk, with_system
from .template import check, fill

WHAT = "pairs of a chosen and a rejected answer"

_ANSWERS = ("chosen", "rejected")
_BEFORE = ("prompt", "conversations", "messages")
"""Columns that may hold what stands before the two answers."""


def recognizes(names: Collection[str]) -> bool:
    return {*_ANSWERS} <= set(names) and not {"completion", "messages", "output", "text"} & set(names)


def rows(dataset: Any, reading: Reading) -> Any:
    """``prompt``, ``chosen`` and ``rejected``: three texts, or messages before one answer and the other."""
    if not reading.pairs:
        raise BoneError(
            f"{reading.source} holds {WHAT}, which bone train learns from with --method dpo; for one of them, name two "
            "columns with --fields."
        )
    names = dataset.column_names
    if missing := [name for name in _ANSWERS if name not in names]:
        raise BoneError(
            f"{reading.source} holds no {WHAT}, which method dpo learns from: it has no column "
            f"{' and no column '.join(missing)}, it has {', '.join(names)}. Leave --method dpo out, or rename them."
        )
    if reading.fields:
        raise BoneError(
            "fields names a prompt and a completion, and pairs are prompt, chosen and rejected: leave it out."
        )
    before = next((name for name in _BEFORE if name in names), None)
    if any(isinstance(dataset[0][name], list | dict) for name in (*_ANSWERS, *([before] if before else []))):
        reading.need_chat()
    elif reading.chat:
        if before is None:
            raise BoneError(
                f"{reading.source} holds pairs of plain text without a column prompt: pass --no-chat to learn them so."
            )
        reading.refuse_template("chat messages")
    if reading.chat:
        return _converted(dataset, lambda row, index: _of_messages(row, before, reading, index), chat=True)
    check(reading.template)
    return _converted(dataset, lambda row, index: _of_text(row, before, reading, index), chat=False)


def _converted(dataset: Any, convert: Any, *, chat: bool) -> Any:
    return converted(dataset, convert, chat=chat, tools=chat, columns=("prompt", *_ANSWERS))


def _of_messages(row: dict[str, Any], before: str | None, reading: Reading, index: int) -> dict[str, Any]:
    first = _messages(row[before], reading, index) if before else []
    found = []
    for name in _ANSWERS:
        said = _messages(row[name], reading, index, role="assistant")
        # Some tables have the question once more, beside two whole chats.
        messages = [*first, *said] if _answers(said) else said
        if messages is said and not _texts(first) <= _texts(said):
            raise reading.fault(index, f"{name!r} is a whole chat, and what {before!r} says is not in it.")
        found.append(talk(with_system(messages, row.get("system")), row.get("tools"), reading, index))
    chosen, rejected = found
    if chosen["prompt"] != rejected["prompt"]:
        raise reading.fault(
            index, "chosen and rejected must part at their last answer, and one of them has other messages before it."
        )
    answers = {"chosen": chosen.pop("completion"), "rejected": rejected["completion"]}
    return chosen | answers


def _answers(said: list[Any]) -> bool:
    """Whether messages begin with an answer."""
    return bool(said) and isinstance(said[0], dict) and said[0].get("role") == "assistant"


def _texts(said: list[Any]) -> set[str]:
    return {str(message.get("content")).strip() for message in said if isinstance(message, dict)}


def _messages(value: Any, reading: Reading, index: int, role: str = "user") -> list[Any]:
    """A list of messages; one message, or a text that somebody of this role says, is a list of it."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise reading.fault(index, f"a prompt and answers must be text or messages, found {value!r:.80}.")
    return [as_message(message, reading, index) for message in value]


def _of_text(row: dict[str, Any], before: str | None, reading: Reading, index: int) -> dict[str, Any]:
    chosen, rejected = (reading.text(row, name, index) for name in _ANSWERS)
    if before is None:
        from trl import extract_prompt

        reading.refuse_template("pairs without a prompt")
        if chosen[0] != rejected[0]:
            raise reading.fault(index, "chosen and rejected begin differently, and there is no column prompt.")
        return dict(extract_prompt({"chosen": chosen, "rejected": rejected}))
    prompt = reading.text(row, before, index)
    if reading.template is not None:
        (asks, chosen), (_, rejected) = (fill(reading.template, prompt, text) for text in (chosen, rejected))
        prompt = asks
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
