"""Base models as files: what is in them, tensor by tensor, and how to write them again with some tensors changed.

One file for each kind. No model is built; for the names of Transformers' models, their outline on the meta device is.
"""

from __future__ import annotations

from pathlib import Path

from bone_peft.errors import BoneError
from bone_peft.io.place import with_home

from . import gguf_file, model_folder, pth_file
from .checkpoint import Checkpoint, Edit, Progress

__all__ = ["Checkpoint", "Edit", "Progress", "open_checkpoint"]


def open_checkpoint(
    base: str, *, task_type: str | None = None, dtype: str = "bfloat16", trust_remote_code: bool = False
) -> Checkpoint:
    """Look into a base model without loading it.

    Args:
        base: a model folder, a hub name, a ``.gguf`` file, ``package:NAME``, or an RWKV ``.pth`` file.
        task_type: PEFT's word for what the model is used for; by default it is what ``config.json`` says.
        dtype: of the weights that a GGUF file is unpacked to. All other kinds keep theirs.
        trust_remote_code: run the Python code that a base brings along, to learn how it names and ties its weights.
            Without it, the names in the files are taken as they are.

    Raises:
        BoneError: nothing there, or it cannot be read.
    """
    base = with_home(base)
    if gguf_file.accepts(base):
        return gguf_file.GgufCheckpoint(base, dtype)
    path = Path(base)
    if path.suffix == ".pth":
        return pth_file.RwkvCheckpoint(path)
    if path.is_dir():
        return model_folder.FolderCheckpoint(path, task_type, trust_remote_code)
    if path.exists() or path.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1:
        raise BoneError(f"There is no base model at {base!r}; give a model folder, a .gguf file or a hub name.")
    return model_folder.FolderCheckpoint(model_folder.download(base), task_type, trust_remote_code)
