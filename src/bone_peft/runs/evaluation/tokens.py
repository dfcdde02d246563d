"""Rows to token ids, split where training splits them: after the tokens that prompt and whole share."""

import json
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.io.names import brief


def encode(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    """``(prompt_ids, completion_ids)`` of one row from ``load_data``; the completion ends with its end token."""
    tools = row.get("tools")
    prompt = encode_prompt(row["prompt"], tokenizer, tools)
    if isinstance(row["prompt"], str):
        end = tokenizer.eos_token or ""
        completion = row["completion"] if row["completion"].endswith(end) else row["completion"] + end
        whole = tokenizer(row["prompt"] + completion)["input_ids"]
    else:
        whole = chat_tokens(row["prompt"] + row["completion"], tokenizer, tools)["input_ids"]
    shared = shared_length(prompt, whole)
    return whole[:shared], whole[shared:]


def encode_prompt(prompt: str | list[dict[str, Any]], tokenizer: Any, tools: Any = None) -> list[int]:
    """Token ids of a prompt as the model meets it before it answers."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return chat_tokens(prompt, tokenizer, tools, add_generation_prompt=True)["input_ids"]


def encode_prompts(rows: Any, tokenizer: Any) -> list[list[int]]:
    """Those of rows from ``load_data``."""
    tools = rows["tools"] if "tools" in rows.column_names else [None] * len(rows)
    return [encode_prompt(prompt, tokenizer, own) for prompt, own in zip(rows["prompt"], tools, strict=True)]


def expected_text(completion: str | list[dict[str, Any]]) -> str:
    """The text an answer is compared with; of a call of tools what is called, as JSON."""
    return completion.strip() if isinstance(completion, str) else prompt_text(completion).strip()


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """The prompt for people to read: its last message."""
    if isinstance(prompt, str):
        return prompt
    said, called = prompt[-1].get("content"), prompt[-1].get("tool_calls")
    return json.dumps(called, ensure_ascii=False) if called and not said else said or ""


def shared_length(one: list[int], other: list[int]) -> int:
    """How many tokens two rows begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def chat_tokens(messages: list[dict[str, Any]], tokenizer: Any, tools: Any = None, **options: Any) -> dict[str, Any]:
    """What the tokenizer's chat template makes of messages.

    Raises:
        BoneError: it refuses them.
    """
    tools = {"tools": tools} if tools else {}
    try:
        encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **tools, **options)
    except Exception as error:  # a template is a program of the base's
        reason = brief(error).rstrip(" .")
        raise BoneError(f"The base's chat template refuses these messages: {reason}.") from error
    return encoded
