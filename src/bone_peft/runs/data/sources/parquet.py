"""Parquet files."""

from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError


def accepts(source: str) -> bool:
    return source.endswith(".parquet")


def read(source: str) -> Any:
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    if not Path(source).is_file():
        raise BoneError(f"There is no data file {source}.")
    try:
        return Dataset.from_parquet(source, keep_in_memory=True)
    except (DatasetGenerationError, StopIteration, OSError, ValueError) as error:
        raise BoneError(
            f"{source} is not a readable Parquet file; write it again or convert it to JSON Lines."
        ) from error
