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
    otherwise once more is said (as those do that take older thoughts out) is skipped, unless it is the last.

    Args:
        row: of chats from :func:`bone_peft.runs.data.load_data`.
        tokenizer: of the base.
        train_on: ``"all"`` or ``"last"``.
        everything: what is asked is learned too, and all that the template adds.
    """
    messages, tools = [*row["prompt"], *row["completion"]], row.get("tools")
    template = tokenizer.get_chat_template(tools=tools) if hasattr(tokenizer, "get_chat_template") else ""
    if everything:
        ids = chat_tokens(messages, tokenizer, tools)["input_ids"]
        return {"input_ids": ids, "labels": ids, "skipped": 0}
    marked = train_on == "all" and tokenizer.is_fast and _MARK.search(template) is not None
    encoded = chat_tokens(messages, tokenizer, tools, **({"return_assistant_tokens_mask": True} if marked else {}))
    ids = list(encoded["input_ids"])
    learned = list(encoded["assistant_masks"]) if marked else []
    if any(learned):
        return {"input_ids": ids, "labels": _where(ids, learned), "skipped": 0}

    learned, skipped = [0] * len(ids), 0
    # The first message of a chat answers nothing.
    *earlier, last = [index for index, message in enumerate(messages) if index and message["role"] == "assistant"]
    for index in [] if train_on == "last" else earlier:
        start, end = _place(messages, index, tools, tokenizer, ids)
        learned[start:end] = [1] * (end - start)
        skipped += start == end
    asked = chat_tokens(messages[:last], tokenizer, tools, add_generation_prompt=True)["input_ids"]
    start = shared_length(asked, ids)
    learned[start:] = [1] * (len(ids) - start)
    return {"input_ids": ids, "labels": _where(ids, learned), "skipped": skipped}


def _place(messages: list[Any], index: int, tools: Any, tokenizer: Any, ids: list[int]) -> tuple[int, int]:
    """Where an answer stands in the whole, by what the chat is before it and with it; twice the same if not so."""
    try:
        asked = chat_tokens(messages[:index], tokenizer, tools, add_generation_prompt=True)["input_ids"]
        answered = chat_tokens(messages[: index + 1], tokenizer, tools)["input_ids"]
    except BoneError:  # some templates take no chat that ends there
        return 0, 0
    start, end = shared_length(asked, ids), shared_length(answered, ids)
    rest = tokenizer.decode(answered[end:], skip_special_tokens=True).strip()
    if start < shared_length(asked, answered) or end < start or rest:
        return 0, 0
    return start, end


def _where(ids: list[int], learned: list[int]) -> list[int]:
    return [token if here else -100 for token, here in zip(ids, learned, strict=True)]
