"""What is ours: a result says in a manifest which files in it were written by a command of this package."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bone_peft.errors import BoneError

from .json_file import read_json

MANIFEST = ".bone.json"
_ABOUT = "The files that bone-peft wrote into this folder. Only these are replaced by --force."


@dataclass(frozen=True)
class FolderOf:
    """A kind of result that is a folder.

    Attributes:
        mark: a file that a folder of this kind has, where it has no manifest because version 0.1 wrote it.
        names: the files that 0.1 wrote, as paths in the folder.
    """

    mark: str = MANIFEST
    names: re.Pattern[str] = re.compile(r"(?!)")

    def strangers(self, folder: Path) -> list[str]:
        """What is in ``folder`` and was not written by us, as paths in it."""
        listed = manifest(folder)
        if listed is not None:
            return [path for path in entries(folder) if path not in listed]
        if not (folder / self.mark).is_file():
            return list(entries(folder))
        return [path for path in entries(folder) if not self.names.fullmatch(path)]


@dataclass(frozen=True)
class FileOf:
    """A kind of result that is one file, known by what is in it.

    Attributes:
        mark: what every file of this kind starts with.
    """

    mark: re.Pattern[bytes]

    def strangers(self, file: Path) -> list[str]:
        """The name of ``file``, if it is not of this kind."""
        try:
            with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return [] if self.mark.match(content) else [file.name]
        except (OSError, ValueError):  # empty, or no file that can be mapped
            return [file.name]


def entries(folder: Path) -> Iterator[str]:
    """The files, links and empty folders in a folder, as paths in it. Links are not followed."""
    for above, folders, files in os.walk(folder, onerror=_raise):
        inside = [name for name in folders if os.path.islink(os.path.join(above, name))]
        if not folders and not files and Path(above) != folder:
            yield Path(above).relative_to(folder).as_posix()
        for name in sorted((*inside, *files)):
            yield Path(above, name).relative_to(folder).as_posix()


def some(paths: Sequence[str]) -> str:
    """The first of these paths, and how many there are beside it."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def manifest(folder: Path) -> set[str] | None:
    """The files in a folder that are ours, or None if it does not say."""
    try:
        listed = read_json(folder / MANIFEST).get("files")
    except (BoneError, OSError):
        return None
    if not isinstance(listed, list):
        return None
    return {MANIFEST, *(path for path in listed if isinstance(path, str))}


def manifest_text(files: Iterable[str]) -> str:
    """A manifest that says that ``files`` are ours, as paths in its folder."""
    return json.dumps({"about": _ABOUT, "files": sorted({*files} - {MANIFEST})}, indent=1) + "\n"


def _raise(error: OSError) -> None:
    raise error
