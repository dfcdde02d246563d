"""Adapters as values, and the files they come in."""

from __future__ import annotations

from pathlib import Path

from bone_peft.errors import BoneError
from bone_peft.io.whole import check_free

from .adapter import Adapter, ShapeOf
from .format import Format
from .formats import FORMATS

__all__ = ["FORMATS", "Adapter", "Format", "ShapeOf", "read_adapter", "write_adapter"]


def read_adapter(path: str | Path) -> tuple[Adapter, Format]:
    """Read an adapter of any format.

    Args:
        path: a PEFT folder (Bone, MiSS or LoRA), or an RWKV-PEFT ``.pth`` file.

    Returns:
        The adapter, and the format it was found in.

    Raises:
        BoneError: nothing there that any format recognizes, or the file is unsound.
    """
    path = Path(path)
    if not path.exists():
        raise BoneError(f"There is no adapter at {path}: check the path.")
    for format in FORMATS.values():
        if format.recognizes(path):
            return format.read(path), format
    raise BoneError(
        f"{path} is no adapter that bone knows: it takes a PEFT folder of Bone, MiSS or LoRA (with "
        "adapter_config.json) or a .pth file of RWKV-PEFT."
    )


def format_for(to: str, out: str | Path, *, force: bool = False) -> Format:
    """The format of that name, if it may be written to ``out``.

    Raises:
        BoneError: no such format, or ``out`` is in the way.
    """
    if to not in FORMATS:
        raise BoneError(f"There is no format {to!r}: choose one of {', '.join(FORMATS)}.")
    check_free(Path(out), folder=FORMATS[to].is_folder, replace=force)
    return FORMATS[to]


def write_adapter(adapter: Adapter, to: str, out: str | Path, *, force: bool = False) -> None:
    """Write an adapter in a format. ``out`` appears when it is whole.

    Raises:
        BoneError: no such format, the format cannot hold this adapter, or ``out`` exists.
    """
    format_for(to, out, force=force).write(adapter, Path(out))
