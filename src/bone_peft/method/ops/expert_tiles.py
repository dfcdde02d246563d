"""Which rows a program of a kernel has, where each expert's rows lie in tiles of their own."""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - PyTorch for CPUs may come without
    triton = None


def most_tiles(rows: int, experts: int, tile: int) -> int:
    """No more are needed, however the rows are spread; those beyond have no expert."""
    return -(-rows // tile) + experts


if triton is not None:

    @triton.jit
    def rows_of_tile(ends, tile, EXPERTS: tl.constexpr, EXPERTS_WIDE: tl.constexpr, TILE: tl.constexpr):
        """Expert (``EXPERTS`` or more if there is no such tile), first row, and the end of that expert's rows."""
        e = tl.arange(0, EXPERTS_WIDE)
        stops = tl.load(ends + e, mask=e < EXPERTS, other=0)
        starts = tl.load(ends + e - 1, mask=(e > 0) & (e < EXPERTS), other=0)
        tiles = (stops - starts + TILE - 1) // TILE
        expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
        before = tl.sum(tl.where(e < expert, tiles, 0), 0)
        start = tl.sum(tl.where(e == expert, starts, 0), 0) + (tile - before) * TILE
        return expert, start, tl.sum(tl.where(e == expert, stops, 0), 0)

    @triton.jit
    def rows_of_expert(ends, expert):
        """Where the rows of an expert start and end."""
        return tl.load(ends + expert - 1, mask=expert > 0, other=0), tl.load(ends + expert)
