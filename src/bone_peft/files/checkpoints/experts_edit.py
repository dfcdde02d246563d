"""What the stored weights of experts become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bone_peft.method.tuner.experts.fused import FusedLinear
from bone_peft.method.variants import of_part, parts_of

from .checkpoint import Edit, Piece, Readable


@dataclass(frozen=True)
class ExpertsEdit(Edit):
    """The edit of a parameter with the matrices of all experts.

    Attributes:
        fused: says how the parameter is laid out.
    """

    fused: FusedLinear | None = None

    def of(self, expert: int, part: int, parts: int) -> Edit:
        """The edit of a matrix that a checkpoint has by itself: a part of one expert's, ``(out / parts, in)``."""
        assert self.fused is not None
        out, number = self.fused.out_features, self.fused.experts
        own = [(v, of_part(v, params, out, expert, number, part, parts)) for v, params in self.adapters]
        return Edit(adapters=own, name=f"{self.name}, expert {expert}")

    def pieces(self, stored: Readable) -> Iterator[Piece]:
        """The new parameter, one expert after the other."""
        number = stored.shape[0]
        parts = max((parts_of(variant, params, number) for variant, params in self.adapters), default=1)
        for expert in range(number):
            own = [self.of(expert, part, parts) for part in range(parts)]
            edit = _OneExpert(name=f"{self.name}, expert {expert}", fused=self.fused, parts=own)
            yield from edit.pieces(_Matrix(stored, expert))


@dataclass(frozen=True)
class _OneExpert(Edit):
    fused: FusedLinear | None = None
    parts: Sequence[Edit] = ()

    def _step(self, columns: int) -> int:
        return 2**62  # At once, as its rows are not those of the adapter.

    def _merged(self, weight: Tensor, span: tuple[int, int] | None) -> Tensor:
        assert self.fused is not None
        matrix = self.fused.matrices(weight[None])[0].contiguous()
        for edit, rows in zip(self.parts, matrix.chunk(len(self.parts)), strict=True):
            edit._merged(rows, None)  # In place.
        return self.fused.stored(matrix[None])[0]


@dataclass(frozen=True)
class _Matrix:
    """One expert of a stored parameter."""

    stored: Readable
    expert: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[1:]

    @property
    def dtype(self) -> torch.dtype | None:
        return self.stored.dtype

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes // self.stored.shape[0]

    def read(self) -> Tensor:
        return self.stored.read_rows(self.expert, self.expert + 1)[0]

    def read_rows(self, start: int, stop: int) -> Tensor:
        return self.read()[start:stop]
