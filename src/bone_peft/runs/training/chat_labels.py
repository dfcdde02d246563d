"""Chats as tokens, with what is learned of them: every answer, or the last one."""

from __future__ import annotations

import re
from typing import Any

from bone_peft.errors import BoneError

from ..evaluation.tokens import chat_tokens, shared_length

_MARK = re.compile(r"\{%-?\s*generation\b")


def labeled(row: dict[str, Any], tokenizer: Any, train_on: str, everything: bool = False) -> dict[str, Any]:
    """``input_ids``, ``labels`` (-100 where nothing is learned), and ``skipped`` answers of one chat.

    Answers are learned with the tokens that end them. Where they stand is told by the template, if it marks them by
    ``{% generation %}``; else by what it makes of the chat up to an answer, and up to its end. An answer that it writes
    otherwise once more is said (as those do that take older thoughts out) is skipped, unless it is the last. An answer
    with ``weight`` 0 is not learned.

    Args:
        row: of chats from :func:`bone_peft.runs.data.load_data`.
        tokenizer: of the base.
        train_on: ``"all"`` or ``"last"``.
        everything: what is asked is learned too, and all that the template adds.
    """
    messages, tools = [*row["prompt"], *row["completion"]], row.get("tools")
    ids, marks = _whole(messages, tools, tokenizer)
    # The first message of a chat answers nothing.
    answers = [index for index, message in enumerate(messages) if index and message["role"] == "assistant"]
    wanted = answers if train_on == "all" else answers[-1:]
    wanted = [index for index in wanted if messages[index].get("weight") != 0]  # OpenAI's word for it
    if everything:
        places = [(0, len(ids))]
    elif wanted == answers and any(marks):
        places = [(index, index + 1) for index, mark in enumerate(marks) if mark]
    else:
        places = [_place(messages, index, tools, tokenizer, ids, index == answers[-1]) for index in wanted]

    labels = [-100] * len(ids)
    for start, end in places:
        labels[start:end] = ids[start:end]
    return {"input_ids": ids, "labels": labels, "skipped": sum(start == end for start, end in places)}


def _whole(messages: list[Any], tools: Any, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens of a chat, and for each whether the template marks it as of an answer, if it does that."""
    marks = tokenizer.is_fast and _MARK.search(tokenizer.get_chat_template(tools=tools)) is not None
    options = {"return_assistant_tokens_mask": True} if marks else {}
    encoded = chat_tokens(messages, tokenizer, tools, **options)
    return list(encoded["input_ids"]), list(encoded["assistant_masks"]) if marks else []


def _place(
    messages: list[Any], index: int, tools: Any, tokenizer: Any, ids: list[int], is_last: bool
) -> tuple[int, int]:
    """Where an answer stands in the whole, by what the chat is before it and with it; twice the same if not so."""
    try:
        asked = chat_tokens(messages[:index], tokenizer, tools, add_generation_prompt=True)["input_ids"]
        if is_last:
            return shared_length(asked, ids), len(ids)
        answered = chat_tokens(messages[: index + 1], tokenizer, tools)["input_ids"]
    except BoneError:  # some templates take no chat that ends there
        if is_last:
            raise
        return 0, 0
    start, end = shared_length(asked, ids), shared_length(answered, ids)
    rest = tokenizer.decode(answered[end:], skip_special_tokens=True).strip()
    if start < shared_length(asked, answered) or end < start or rest:
        return 0, 0
    return start, end
