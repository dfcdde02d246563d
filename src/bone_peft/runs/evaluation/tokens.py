"""Rows to token ids, split where training splits them: after the tokens that prompt and whole share."""

from typing import Any

from bone_peft.errors import BoneError
from bone_peft.io.names import brief


def encode(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    """``(prompt_ids, completion_ids)`` of one row from ``load_data``; the completion ends with its end token."""
    prompt = encode_prompt(row["prompt"], tokenizer)
    if isinstance(row["prompt"], str):
        end = tokenizer.eos_token or ""
        completion = row["completion"] if row["completion"].endswith(end) else row["completion"] + end
        whole = tokenizer(row["prompt"] + completion)["input_ids"]
    else:
        whole = _chat(row["prompt"] + row["completion"], tokenizer, add_generation_prompt=False)
    shared = 0
    for ours, theirs in zip(prompt, whole, strict=False):
        if ours != theirs:
            break
        shared += 1
    return whole[:shared], whole[shared:]


def encode_prompt(prompt: str | list[dict[str, str]], tokenizer: Any) -> list[int]:
    """Token ids of a prompt as the model meets it before it answers."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return _chat(prompt, tokenizer, add_generation_prompt=True)


def expected_text(completion: str | list[dict[str, str]]) -> str:
    """The text an answer is compared with."""
    return completion.strip() if isinstance(completion, str) else completion[-1]["content"].strip()


def prompt_text(prompt: str | list[dict[str, str]]) -> str:
    """The prompt for people to read: its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _chat(messages: list[dict[str, str]], tokenizer: Any, *, add_generation_prompt: bool) -> list[int]:
    try:
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=True
        )
    except Exception as error:  # a template is a program of the base's
        reason = brief(error).rstrip(" .")
        raise BoneError(f"The base's chat template refuses these messages: {reason}.") from error
    return encoded["input_ids"]
