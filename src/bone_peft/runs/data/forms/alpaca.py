"""Columns ``instruction``, ``input`` and ``output``, as Alpaca has them; also ``system`` and ``history``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .columns import asked
from .reading import Reading, converted

WHAT = "Alpaca's instructions"


def recognizes(names: Collection[str]) -> bool:
    return {"instruction", "output"} <= set(names) and not {"prompt", "messages", "conversations"} & set(names)


def rows(dataset: Any, reading: Reading) -> Any:
    """The input stands under the instruction; a base without chat gets Alpaca's own headings around both."""
    reading.refuse_template("instructions")

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        instruction = reading.text(row, "instruction", index)
        given = reading.text(row, "input", index) if row.get("input") not in (None, "") else ""
        output = reading.text(row, "output", index)
        if reading.chat:
            return asked(f"{instruction}\n\n{given}".rstrip(), output, True, _before(row, reading, index))
        if row.get("history"):
            raise reading.fault(index, "history needs a base with a chat template and no --no-chat.")
        parts = {"Instruction": instruction, "Input": given, "Response": ""}
        headed = "\n\n".join(f"### {name}:\n{text}" for name, text in parts.items() if text or name == "Response")
        system = reading.text(row, "system", index) + "\n\n" if row.get("system") else ""
        return asked(system + headed, output, False)

    return converted(dataset, convert, chat=reading.chat)


def _before(row: dict[str, Any], reading: Reading, index: int) -> tuple[dict[str, str], ...]:
    said = [("system", reading.text(row, "system", index))] if row.get("system") else []
    for pair in row.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) and text for text in pair)):
            raise reading.fault(index, "history must be a list of a question and an answer each.")
        said += zip(("user", "assistant"), pair, strict=True)
    return tuple({"role": role, "content": content} for role, content in said)
