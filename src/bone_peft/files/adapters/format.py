"""What a file format has to offer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .adapter import Adapter


@dataclass(frozen=True)
class Format:
    """One format of adapter files.

    Attributes:
        name: the word for it on the command line.
        title: the same for people.
        recognizes: whether a path looks like this format; a glance, no check.
        read: the adapter in a path. Raises BoneError for whatever is unsound.
        write: an adapter into a path, whole or not at all. Raises BoneError if the format cannot hold it.
        is_folder: whether an adapter is a folder in this format, or else a single file.
    """

    name: str
    title: str
    recognizes: Callable[[Path], bool]
    read: Callable[[Path], Adapter]
    write: Callable[[Adapter, Path], None]
    is_folder: bool = True
