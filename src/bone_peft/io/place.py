"""Where an output goes: links followed, ``~`` expanded, and never where an input is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from bone_peft.errors import BoneError


def expanded(path: str | Path) -> Path:
    """``path`` with the home folder for ``~``.

    Raises:
        BoneError: ``~name`` of somebody whom the system does not know.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise BoneError(f"There is no home folder for {path}: write the path out.") from None


def with_home(name: str) -> str:
    """A name as the user wrote it, with the home folder for ``~``. Other names stay as they are."""
    return str(expanded(name)) if name.startswith("~") else name


def real(path: str | Path) -> Path:
    """The place behind ``path``: a link is followed, whether or not its target exists.

    Raises:
        BoneError: the link leads back to itself.
    """
    place = Path(os.path.realpath(expanded(path)))
    if place.is_symlink():
        raise BoneError(f"{path} is a link that leads back to itself: choose another name.")
    return place


def keep_off(out: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse an output that is an input, or a folder with an input in it.

    Args:
        out: the output.
        inputs: what the command reads. What is no path here, such as a name of the hub, is passed over.

    Raises:
        BoneError: writing to ``out`` would replace one of them.
    """
    place = real(out)
    if not place.exists():
        return
    for given in inputs:
        if given is None or not os.path.exists(expanded(given)):
            continue
        source = real(given)
        if any(place.samefile(above) for above in (source, *source.parents)):
            raise BoneError(f"{out} is or holds {given}, which is in use: choose another place for the output.")
