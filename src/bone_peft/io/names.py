"""Names of tensors in adapters: dotted paths that stay inside a module tree."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bone_peft.errors import BoneError

MAX_TENSORS = 1_000_000
_MAX_LENGTH = 1000
_PART = re.compile(r"(?!__)[A-Za-z0-9_-]+")


def check_names(names: Iterable[str], where: str) -> None:
    """Raise a BoneError at the first name that is no dotted path of plain module names."""
    for name in names:
        if len(name) > _MAX_LENGTH or not all(_PART.fullmatch(part) for part in name.split(".")):
            raise BoneError(
                f"{where} has a tensor named {shown(name)}, which is no path in a module tree: the file is "
                "damaged or made to harm."
            )


def brief(error: Exception) -> str:
    """What another library says of a failure, on one line and not for ever."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def shown(name: str) -> str:
    """A name from a file, short and safe to print."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
