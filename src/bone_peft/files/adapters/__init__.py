"""Adapters as values, and the files they come in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bone_peft.errors import BoneError
from bone_peft.io.ours import FileOf, FolderOf
from bone_peft.io.place import expanded
from bone_peft.io.whole import check_free, whole_file, whole_folder

from .adapter import Adapter, ShapeOf
from .format import Format
from .formats import FORMATS
from .peft_folder import CONFIG
from .rwkv_names import are_rwkv, by_hf_names

__all__ = ["FORMATS", "Adapter", "Format", "ShapeOf", "adapter_at", "base_of", "read_adapter", "write_adapter"]


def read_adapter(path: str | Path) -> tuple[Adapter, Format]:
    """Read an adapter of any format.

    Args:
        path: a PEFT folder (Bone, MiSS or LoRA), the folder of a run, or an RWKV-PEFT ``.pth`` file. Any of them may
            have RWKV's own names of modules; here they are called as in the Hugging Face model.

    Returns:
        The adapter, and the format it was found in.

    Raises:
        BoneError: nothing there that any format recognizes, or the file is unsound.
    """
    path = adapter_at(path)
    if not path.exists():
        raise BoneError(f"There is no adapter at {path}: check the path.")
    for format in FORMATS.values():
        if format.recognizes(path):
            adapter = format.read(path)
            return (by_hf_names(adapter) if are_rwkv(adapter.layers) else adapter), format
    raise BoneError(
        f"{path} is no adapter that bone knows: it takes a PEFT folder of Bone, MiSS or LoRA (with "
        "adapter_config.json) or a .pth file of RWKV-PEFT."
    )


def adapter_at(path: str | Path) -> Path:
    """The adapter that ``path`` names: itself, or the one in the folder of a run."""
    path = expanded(path)
    inside = path / "adapter"
    return inside if (inside / CONFIG).is_file() and not (path / CONFIG).exists() else path


def base_of(path: str | Path) -> str:
    """The base that an adapter names.

    Raises:
        BoneError: no adapter, or it names none.
    """
    base = read_adapter(path)[0].config.base_model_name_or_path
    if not base:
        raise BoneError(f"{path} does not say what it was trained on: name the base with --base.")
    return base


def format_for(to: str, out: str | Path, *, force: bool = False, inputs: Iterable[str | Path | None] = ()) -> Format:
    """The format of that name, if it may be written to ``out`` while ``inputs`` are read.

    Raises:
        BoneError: no such format, or ``out`` is not free.
    """
    if to not in FORMATS:
        raise BoneError(f"There is no format {to!r}: choose one of {', '.join(FORMATS)}.")
    format = FORMATS[to]
    if isinstance(format.kind, FileOf) and Path(out).suffix != ".pth":
        raise BoneError(f"{format.title}s are .pth files: call the output {Path(out).name}.pth.")
    check_free(out, format.kind, replace=force, inputs=inputs)
    return format


def write_adapter(adapter: Adapter, to: str, out: str | Path, *, force: bool = False) -> None:
    """Write an adapter in a format. ``out`` appears when it is whole.

    Raises:
        BoneError: no such format, the format cannot hold this adapter, or ``out`` exists.
    """
    format = format_for(to, out, force=force)
    if isinstance(format.kind, FolderOf):
        with whole_folder(out, format.kind, replace=force) as folder:
            format.write(adapter, folder)
    else:
        with whole_file(out, format.kind, replace=force) as file:
            format.write(adapter, file)
