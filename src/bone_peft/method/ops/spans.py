"""Where the rows of each expert lie."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def spans(ends: Tensor) -> Iterator[tuple[int, slice]]:
    """Expert and rows, for each that has any. Waits for a GPU.

    Args:
        ends: ``(experts,)``, where the rows of each end.
    """
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            yield expert, slice(start, end)
        start = end
