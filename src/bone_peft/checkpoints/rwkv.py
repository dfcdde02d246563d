"""An RWKV model: one ``.pth`` file, whose keys are the names of the modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import BoneError
from ..reading import StoredTensor, read_torch
from .checkpoint import Edit, Progress
from .rewrite import rewrite_torch


class RwkvCheckpoint:
    """A ``.pth`` file. See :class:`~bone_peft.checkpoints.Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.file = read_torch(path)
        self.nbytes = path.stat().st_size

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        return self.file.tensors

    def shape_of(self, module: str) -> tuple[int, int]:
        stored = self.tensors.get(f"{module}.weight")
        if stored is None or len(stored.shape) != 2:
            raise BoneError(f"{self.name} has no matrix {module}.weight: the adapter is for another base.")
        return stored.shape[0], stored.shape[1]

    def transposed(self, module: str) -> bool:
        return False

    def write(self, out: Path, edits: Mapping[str, Edit], progress: Progress) -> None:
        lost = next((name for name in edits if name not in self.tensors), None)
        if lost is not None:
            raise BoneError(f"{self.name} has no {lost}: the adapter is for another base.")
        done = 0

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            progress(done, self.nbytes)

        rewrite_torch(self.file, out, edits, wrote)
