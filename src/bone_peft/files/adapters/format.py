"""What a file format has to offer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bone_peft.io.ours import FileOf, FolderOf

from ..kinds import ADAPTER
from .adapter import Adapter


@dataclass(frozen=True)
class Format:
    """One format of adapter files.

    Attributes:
        name: the word for it on the command line.
        title: the same for people.
        recognizes: whether a path looks like this format; a glance, no check.
        read: the adapter in a path. Raises BoneError for whatever is unsound.
        write: an adapter into an empty folder or file. Raises BoneError if the format cannot hold it.
        kind: whether that is a folder or a file, and how one that we wrote is known.
    """

    name: str
    title: str
    recognizes: Callable[[Path], bool]
    read: Callable[[Path], Adapter]
    write: Callable[[Adapter, Path], None]
    kind: FolderOf | FileOf = ADAPTER
