"""JSON Lines (``.jsonl``), or one JSON array (``.json``)."""

import json
from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError


def accepts(source: str) -> bool:
    return source.endswith((".jsonl", ".json"))


def read(source: str) -> Any:
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    path = Path(source)
    if not path.is_file():
        raise BoneError(f"There is no data file {source}.")
    if path.stat().st_size == 0:
        raise BoneError(f"{source} is empty; there is nothing to learn or to score.")
    try:
        return Dataset.from_json(str(path), keep_in_memory=True)
    except (DatasetGenerationError, StopIteration, TypeError, ValueError) as error:
        raise BoneError(
            f"{source} is not readable JSON Lines{_where(path)}; every line must hold one object."
        ) from error


def _where(path: Path) -> str:
    """``" (line 7)"``: the first line that is no JSON object, if it is a matter of one line."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f" (line {number} holds no object)"
            except json.JSONDecodeError:
                return f" (line {number})"
    return " (its lines do not agree on the type of a field)"
