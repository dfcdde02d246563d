"""JSON Lines (``.jsonl``), or one JSON list (``.json``)."""

import json
from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError

from ..json_rows import Number, json_rows

SUFFIXES = (".jsonl", ".json")


def accepts(source: str) -> bool:
    return source.endswith(SUFFIXES)


def read(source: str) -> Any:
    from datasets import Dataset, Features, Json, List, concatenate_datasets

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
    objects = {name: _as_written(values) for name, values in columns.items() if _holds_objects(values)}
    plain = {name: values for name, values in columns.items() if name not in objects}
    try:
        tables = [Dataset.from_dict(plain)] if plain or not objects else []
        if objects:
            tables.append(Dataset.from_dict(objects, features=Features(dict.fromkeys(objects, List(Json())))))
        return concatenate_datasets(tables, axis=1)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise _disagreement(source, lines, columns) from error


def _holds_objects(values: list[Any]) -> bool:
    """Whether a field holds lists of objects, such as messages, whose parts may be others in each row."""
    there = [value for value in values if value is not None]
    lists = all(isinstance(value, list) and all(isinstance(part, dict) for part in value) for value in there)
    return lists and any(there)


def _as_written(value: Any) -> Any:
    """With numbers in place of their text."""
    if isinstance(value, dict):
        return {name: _as_written(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_as_written(part) for part in value]
    return json.loads(value) if isinstance(value, Number) else value


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
