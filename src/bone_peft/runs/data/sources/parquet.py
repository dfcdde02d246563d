"""Parquet files."""

from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError

SUFFIXES = (".parquet",)


def accepts(source: str) -> bool:
    return source.endswith(SUFFIXES)


def read(source: str) -> Any:
    from datasets import Dataset
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    if not Path(source).is_file():
        raise BoneError(f"There is no data file {source}.")
    try:
        with ParquetFile(source) as file:
            return Dataset(file.read())
    except (ArrowException, OSError, ValueError, TypeError, NotImplementedError) as error:
        raise BoneError(
            f"{source} is not a readable Parquet file; write it again or convert it to JSON Lines."
        ) from error
