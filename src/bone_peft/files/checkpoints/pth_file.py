"""An RWKV model: one ``.pth`` file. It has names of its own; here its tensors go by those of the Hugging Face model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from bone_peft.errors import BoneError
from bone_peft.io.stored import StoredTensor
from bone_peft.io.torch_file import read_torch
from bone_peft.rwkv.pth_names import hf_name, pth_layout, pth_name

from .checkpoint import Edit, Progress
from .rewrite import rewrite_torch


class RwkvCheckpoint:
    """A ``.pth`` file. See :class:`~bone_peft.files.checkpoints.Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = None
        self.name = str(path)
        self.file = read_torch(path)
        self.tensors: dict[str, StoredTensor] = {hf_name(name): t for name, t in self.file.tensors.items()}
        self.nbytes = path.stat().st_size

    def fused(self, module: str) -> None:
        return None

    def apart(self, fused: str) -> dict[tuple[int, int], StoredTensor]:
        return {}

    def shape_of(self, module: str) -> tuple[int, int]:
        stored = self.tensors.get(f"{module}.weight")
        if stored is None or len(stored.shape) != 2:
            raise BoneError(f"{self.name} has no matrix {pth_name(module)}.weight: the adapter is for another base.")
        return stored.shape[0], stored.shape[1]

    def transposed(self, module: str) -> bool:
        return False

    def write(self, out: Path, edits: Mapping[str, Edit], progress: Progress) -> None:
        lost = next((name for name in edits if name not in self.tensors), None)
        if lost is not None:
            raise BoneError(f"{self.name} has no {pth_name(lost)}: the adapter is for another base.")
        done = 0

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            progress(done, self.nbytes)

        rewrite_torch(
            self.file, out, {pth_name(name): self._in_file(name, edit) for name, edit in edits.items()}, wrote
        )

    def _in_file(self, name: str, edit: Edit) -> Edit:
        """An edit of a stored tensor, for the layout that it is stored in."""
        if edit.replacement is None:
            return edit
        value = pth_layout(pth_name(name), edit.replacement)
        shape = self.tensors[name].shape
        return replace(edit, replacement=value.reshape(shape) if value.numel() == prod(shape) else value)
