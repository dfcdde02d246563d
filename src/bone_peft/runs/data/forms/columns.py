"""Two columns, a prompt and its completion: of text, or each of messages."""

from __future__ import annotations

from typing import Any

from bone_peft.errors import BoneError

from .reading import Reading, converted
from .talk import is_talk, talk, with_system
from .template import check, fill

WHAT = "prompts and completions"


def rows(dataset: Any, reading: Reading) -> Any:
    """Two named columns of text; as chat, one user and one assistant message."""
    prompt_field, completion_field = reading.fields or ("prompt", "completion")
    missing = [name for name in (prompt_field, completion_field) if name not in dataset.column_names]
    if missing:
        raise BoneError(
            f"{reading.source} has no field {' or '.join(map(repr, missing))}; "
            f"it has {', '.join(dataset.column_names)}: name two of them with --fields PROMPT COMPLETION."
        )
    template = reading.template
    check(template)
    if all(is_talk(dataset[0][field]) for field in (prompt_field, completion_field)):
        reading.need_chat()

        def joined(row: dict[str, Any], index: int) -> dict[str, Any]:
            # What is asked holds answers that are context here.
            context = [m | {"weight": 0} if m.get("role") == "assistant" else m for m in row[prompt_field] or []]
            said = row[completion_field] or []
            if not any(isinstance(m, dict) and m.get("role") == "assistant" for m in said):
                raise reading.fault(index, f"{completion_field!r} must hold an answer (role assistant).")
            return talk(with_system([*context, *said], row.get("system")), row.get("tools"), reading, index)

        return converted(dataset, joined, chat=True, tools=True)

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        prompt = reading.text(row, prompt_field, index)
        completion = reading.text(row, completion_field, index)
        if template is not None:
            prompt, completion = fill(template, prompt, completion)
        if not beside:
            return asked(prompt, completion, reading.chat)
        chat = asked(prompt, completion, True)
        messages = with_system([*chat["prompt"], *chat["completion"]], row.get("system"))
        return talk(messages, row.get("tools"), reading, index)

    # Of columns that somebody named, others may be about anything.
    beside = reading.chat and reading.fields is None
    if not beside and "tools" in dataset.column_names:
        dataset = dataset.remove_columns("tools")
    return converted(dataset, convert, chat=reading.chat, tools=beside)


def asked(prompt: str, completion: str, chat: bool, before: tuple[dict[str, str], ...] = ()) -> dict[str, Any]:
    """A row of one question and its answer, after messages ``before``."""
    if not chat:
        return {"prompt": prompt, "completion": completion}
    return {
        "prompt": [*before, {"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }
