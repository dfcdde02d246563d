"""Pictures as files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.io.ours import FileOf
from bone_peft.io.whole import check_free, whole_file

# By suffix: where a file of this format says what made it.
_MAKER = {".svg": "Creator", ".png": "Software", ".pdf": "Creator"}
_PICTURE = FileOf(re.compile(rb"[\s\S]*?Matplotlib for bone-peft"))


def check_picture(path: str | Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Say before the work whether a picture may be drawn there.

    Raises:
        BoneError: another kind of file, something else is there, or it is one of ``inputs``.
    """
    if Path(path).suffix not in _MAKER:
        raise BoneError(f"A chart is an {' or '.join(_MAKER)} file, and {Path(path).name} is none of them.")
    check_free(path, _PICTURE, replace=True, inputs=inputs)


def save_figure(figure: Any, path: str | Path) -> None:
    """Draw a figure into a file whose suffix says the format. An older picture of ours is replaced.

    Raises:
        BoneError: see :func:`check_picture`.
    """
    check_picture(path)
    suffix = Path(path).suffix
    with whole_file(path, _PICTURE) as file:
        figure.savefig(file, format=suffix[1:], dpi=150, metadata={_MAKER[suffix]: "Matplotlib for bone-peft"})
