"""Comma-separated (``.csv``) and tab-separated (``.tsv``) values, with the names of the columns in the first line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = tuple(_SEPARATORS)


def accepts(source: str) -> bool:
    return source.endswith(SUFFIXES)


def read(source: str) -> Any:
    """Every value is text, as it is written."""
    from datasets import Dataset

    path = Path(source)
    if not path.is_file():
        raise BoneError(f"There is no data file {source}.")
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=_SEPARATORS[path.suffix], strict=True)
            names = next(lines, [])
            rows = [(lines.line_num, row) for row in lines if row]
    except UnicodeDecodeError as error:
        raise BoneError(
            f"{source} is not UTF-8 ({error.object[error.start]:#x}): convert it, as by iconv -f LATIN1 -t UTF-8."
        ) from None
    except csv.Error as error:
        raise BoneError(f"{source}, line {lines.line_num} is no row of values ({error}): mend or drop it.") from None
    if len(set(names)) != len(names) or not all(names):
        raise BoneError(f"{source} must name its columns in the first line, each otherwise; found {', '.join(names)}.")
    for line, row in rows:
        if len(row) != len(names):
            raise BoneError(f"{source}, line {line} has {len(row)} values, and there are {len(names)} columns.")
    return Dataset.from_dict({name: [row[place] for _, row in rows] for place, name in enumerate(names)})
