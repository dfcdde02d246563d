"""Names from files: which are taken, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bone_peft.errors import BoneError

MAX_TENSORS = 1_000_000
_MAX_LENGTH = 1000
# Control characters, other ends of lines, what turns the direction of writing, and halves of characters.
_DRAWS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
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


def printable(text: str, keep: str = "\n\t") -> str:
    """``text`` with what would draw on a terminal, or break its output, written as an escape: ``\\x1b``.

    Args:
        text: from anywhere.
        keep: control characters that stay.
    """
    return "".join(c if c in keep or not _DRAWS.match(c) else c.encode("unicode_escape").decode() for c in text)


def shown(name: str) -> str:
    """A name from a file, short and safe to print."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
