"""JSON Lines (``.jsonl``), or one JSON list (``.json``)."""

from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError

from ..json_rows import json_rows


def accepts(source: str) -> bool:
    return source.endswith((".jsonl", ".json"))


def read(source: str) -> Any:
    from datasets import Dataset

    path = Path(source)
    if not path.is_file():
        raise BoneError(f"There is no data file {source}.")
    if path.stat().st_size == 0:
        raise BoneError(f"{source} is empty; there is nothing to learn or to score.")
    lines, rows = [], []
    for line, row in json_rows(path):
        lines.append(line)
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        return Dataset.from_dict(columns)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise _disagreement(source, lines, columns) from error


def _disagreement(source: str, lines: list[int], columns: dict[str, list[Any]]) -> BoneError:
    """Which field of which lines holds now this, now that."""
    for name, values in columns.items():
        first: dict[str, int] = {}
        for line, value in zip(lines, values, strict=True):
            if value is not None:
                first.setdefault(_KINDS.get(type(value), "an object"), line)
        if len(first) > 1:
            (one, line), (other, later) = list(first.items())[:2]
            return BoneError(
                f"{source}: field {name!r} holds {one} on line {line} and {other} on line {later}; "
                "a field must hold the same in every row."
            )
    return BoneError(f"{source}: the lines do not agree on what the parts of a field hold; make them alike.")


_KINDS = {str: "text", bool: "true or false", list: "a list"}
