"""A tensor that is still in its file."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from bone_peft.errors import BoneError


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies. Reading takes plain reads, so that memory holds what was asked for and no more.

    Attributes:
        path: the file.
        offset: of the first element, in bytes from the start of the file.
        dtype: ``None`` if torch has no such type; the bytes can then be copied, not read.
        shape: as usual.
        stride: in elements; ``None`` for row-major.
        nbytes: bytes from the first element to the end of the last one.
    """

    path: Path
    offset: int
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    nbytes: int
    stride: tuple[int, ...] | None = None

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        dtype = self._known_dtype()
        elements = _read(self.path, self.offset, self.nbytes).view(dtype)
        if self.stride is None:
            return elements.view(self.shape)
        return elements.as_strided(self.shape, self.stride).contiguous()

    def read_rows(self, start: int, stop: int) -> Tensor:
        """``tensor[start:stop]``, without reading the rest when the tensor is row-major."""
        if self.stride is not None or not self.shape:
            return self.read()[start:stop]
        dtype = self._known_dtype()
        row = prod(self.shape[1:]) * dtype.itemsize
        rows = _read(self.path, self.offset + start * row, (stop - start) * row)
        return rows.view(dtype).view(stop - start, *self.shape[1:])

    def _known_dtype(self) -> torch.dtype:
        if self.dtype is None:
            raise BoneError(f"{self.path} holds a tensor of a type that torch cannot read; it can only be copied.")
        return self.dtype


def _read(path: Path, offset: int, nbytes: int) -> Tensor:
    buffer = torch.empty(nbytes, dtype=torch.uint8)
    view = memoryview(buffer.numpy())  # type: ignore[arg-type]
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        done = 0
        while done < nbytes:
            got = file.readinto(view[done:])
            if not got:
                raise BoneError(f"{path} ended before all of its tensors were read; was it changed meanwhile?")
            done += got
    return buffer


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a row-major tensor, in elements."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
