"""What every kind of checkpoint offers, and what is to change in one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import isfinite, lcm
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.method.tuner.experts.fused import FusedLinear
from bone_peft.method.variants import Params, Variant

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes to write."""

CHUNK = 2**19
"""Elements that are merged at a time: few enough to stay in a core's cache from reading to rounding."""

R = TypeVar("R")

# More would wait for the disk, and hold memory.
_CORES = min(os.cpu_count() or 1, 8)


class Readable(Protocol):
    """A tensor that can be read whole or by rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype | None: ...

    @property
    def nbytes(self) -> int: ...

    def read(self) -> Tensor: ...

    def read_rows(self, start: int, stop: int) -> Tensor: ...


@dataclass(frozen=True)
class Held:
    """A tensor in memory, to be edited like one in a file."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def read(self) -> Tensor:
        return self.tensor.clone()

    def read_rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[start:stop].clone()


Piece = Callable[[], Tensor]
"""Rows of a tensor that are still to be computed."""


def in_parallel(tasks: Iterable[Callable[[], R]]) -> Iterator[R]:
    """The results of ``tasks`` in their order. Each core runs one, and they are a little ahead of what is taken.

    This thread is one of them while the next result is not there; else it is for who takes the results.
    """
    others = max(_CORES - 1, 1)
    coming: deque[Future[R]] = deque()
    with ThreadPoolExecutor(others) as pool:
        for task in tasks:
            if len(coming) >= others and not coming[0].done():
                own: Future[R] = Future()
                own.set_result(task())
                coming.append(own)
            else:
                coming.append(pool.submit(task))
            if len(coming) > _CORES:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


@dataclass(frozen=True)
class Edit:
    """What a stored weight becomes.

    Attributes:
        adapters: variant and tensors of each adapter, in their order.
        replacement: the value to start from instead of the stored one.
        transposed: whether the weight is stored as ``(in, out)``.
        name: of the weight, for errors.
    """

    adapters: Sequence[tuple[type[Variant], Params]] = ()
    replacement: Tensor | None = None
    transposed: bool = False
    name: str = "a weight"

    def pieces(self, stored: Readable) -> Iterator[Piece]:
        """The new weight in row-major pieces, in the stored type. Computed in float32, rounded once.

        Raises:
            BoneError: by a piece that is made, if the new weight holds NaN or infinity: the base does, or its type is
                too small for the sum.
        """
        if self.replacement is not None and self.replacement.shape != stored.shape:
            raise BoneError(
                f"The adapter brings a weight of shape {tuple(self.replacement.shape)} where the base has "
                f"{tuple(stored.shape)}: resize the base's vocabulary first."
            )
        rows = stored.shape[0] if stored.shape else 1
        step = rows if self.transposed or len(stored.shape) != 2 else self._step(stored.shape[1])
        for start in range(0, rows, step):
            span = start, min(start + step, rows)
            yield partial(self._piece, stored, span, step >= rows)

    def whole(self, stored: Readable) -> Tensor:
        """The new weight in one piece."""
        pieces = list(in_parallel(self.pieces(stored)))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    @torch.no_grad()
    def _piece(self, stored: Readable, span: tuple[int, int], whole: bool) -> Tensor:
        piece = self._merged(self._before(stored, span, whole), None if whole else span)
        if is_finite(piece):
            return piece
        if self.replacement is None and not is_finite(self._before(stored, span, whole)):
            raise BoneError(f"The base holds NaN or infinity in {self.name}: it is broken, take another copy of it.")
        raise BoneError(
            f"Merging gives NaN or infinity in {self.name}, whose {str(piece.dtype).removeprefix('torch.')} holds no "
            "numbers so large, so nothing was written: take the base in another type, or an earlier adapter."
        )

    def _before(self, stored: Readable, span: tuple[int, int], whole: bool) -> Tensor:
        """Rows of what the adapters are added to, in memory of their own."""
        start, stop = span
        if self.replacement is None:
            return stored.read() if whole else stored.read_rows(start, stop)
        piece = self.replacement[start:stop] if self.replacement.ndim else self.replacement
        return piece.to(stored.dtype or torch.float32, copy=True)

    def _step(self, columns: int) -> int:
        """Rows of a piece; a piece ends where a block of every adapter ends."""
        multiple = lcm(*(variant.sides(params)[2] for variant, params in self.adapters))
        return max(CHUNK // columns // multiple, 1) * multiple

    def _merged(self, weight: Tensor, span: tuple[int, int] | None) -> Tensor:
        if not self.adapters:
            return weight
        stored = weight.T if self.transposed else weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        # As several active adapters do: each stands on the weight that the one before has made. In place, as what was
        # read is ours.
        merged = stored.to(dtype)
        for variant, params in self.adapters:
            part = params if span is None else variant.rows(params, *span)
            variant.add_delta_weight({name: tensor.to(dtype) for name, tensor in part.items()}, merged)
        stored.copy_(merged)
        return weight


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity."""
    # Five times faster than isfinite(): both ends of the range say it, NaN included.
    return not tensor.numel() or all(map(isfinite, map(float, tensor.aminmax())))


class Checkpoint(Protocol):
    """A base model in files.

    Attributes:
        name: what the user called it.
        model: its outline, or ``None`` if there is none.
        tensors: every stored tensor, by the name of the parameter it becomes.
        nbytes: of all weights.
    """

    name: str

    @property
    def model(self) -> Any: ...

    @property
    def tensors(self) -> Mapping[str, Readable]: ...

    @property
    def nbytes(self) -> int: ...

    def shape_of(self, module: str) -> tuple[int, ...]:
        """``(out, in)`` of a linear module's weight, or ``(experts, out, in)``. Raises BoneError if there is none."""
        ...

    def fused(self, module: str) -> FusedLinear | None:
        """The layout of a parameter with the matrices of all experts; ``None`` for what is a layer."""
        ...

    def apart(self, fused: str) -> Mapping[tuple[int, int], Readable]:
        """The matrices of a parameter's experts that the files have one by one: by expert and part, ``(out, in)``."""
        ...

    def transposed(self, module: str) -> bool:
        """Whether the weight of a module is stored as ``(in, out)``."""
        ...

    def write(self, out: Path, edits: Mapping[str, Edit], progress: Progress) -> None:
        """Write the checkpoint again, to a new folder (RWKV: file), with some parameters changed.

        Raises:
            BoneError: an edit names a parameter that this checkpoint cannot take.
        """
        ...
