"""Which files a source names: itself where there is one of that name, else what matches it as a pattern."""

from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path

from bone_peft.errors import BoneError
from bone_peft.io.place import with_home

from .sources import SUFFIXES


def sources_in(given: str | Iterable[str]) -> list[str]:
    """Every source that ``given`` (one, or several) names; a pattern such as ``data/*.jsonl`` as its files."""
    return [source for name in ([given] if isinstance(given, str) else given) for source in _expanded(name)]


def written(given: str | Iterable[str]) -> str:
    """The source or sources as one writes them in a sentence."""
    return given if isinstance(given, str) else ", ".join(given)


def _expanded(name: str) -> list[str]:
    if not name.endswith(SUFFIXES):
        return [name]
    path = with_home(name)
    if Path(path).exists() or not has_magic(path):
        return [path]
    found = sorted(file for file in glob(path, recursive=True) if Path(file).is_file())
    if not found:
        raise BoneError(f"No file is called {name}, and none matches it as a pattern.")
    return found
