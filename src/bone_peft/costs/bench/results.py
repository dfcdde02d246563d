"""Results as a file and as a chart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bone_peft.io.drawing import save_figure
from bone_peft.io.json_text import json_text
from bone_peft.io.ours import FileOf
from bone_peft.io.whole import whole_file

_OURS, _PEERS = "#1f77b4", "#b0b0b0"
RECORD = FileOf(re.compile(rb'\{\s*"kind":'))
"""How the files that :func:`save` writes are known."""


def save(path: str | Path, record: dict[str, Any]) -> None:
    """Write a record as JSON; an older record is replaced in one piece."""
    with whole_file(path, RECORD) as file:
        file.write_text(json_text(record), encoding="utf-8")


def chart(path: str | Path, values: dict[str, float], title: str, axis: str, line: float | None = 1.0) -> None:
    """Horizontal bars by contestant, ours in blue.

    Args:
        path: where to; the suffix says the format: ``.png``, ``.svg`` or ``.pdf``.
        values: by contestant, drawn from top to bottom.
        title: above the bars.
        axis: what the numbers are.
        line: where the floor, or the base, is, if there is one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 0.32 * len(values)), layout="constrained")
    axes = figure.subplots()
    names = list(values)
    colors = [_PEERS if name.startswith("peft-") else _OURS for name in names]
    bars = axes.barh(names, list(values.values()), color=colors)
    axes.bar_label(bars, fmt="%.2f" if line is not None else "%.0f", padding=3)
    if line is not None:
        axes.axvline(line, color="black", linewidth=0.8, linestyle="--")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(axis)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
