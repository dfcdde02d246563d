"""The trainable parameters of every method over its size, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bone_peft.io.drawing import save_figure

from .estimate import Estimate
from .methods import METHODS

_SIZES = [4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256]


def write_chart(estimate: Estimate, path: str | Path) -> None:
    """Draw an estimate over ``r`` into an ``.svg``, ``.png`` or ``.pdf`` file.

    Raises:
        BoneError: another kind of file, or one that is not ours is there.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    at = {cost.method: cost for cost in estimate.costs if cost.refusal is None}
    # Methods with the same count share a line, and say so.
    groups: dict[int, list[str]] = {}
    for name in METHODS:
        groups.setdefault(METHODS[name].count(estimate.layers, 64), []).append(name)
    for index, names in enumerate(groups.values()):
        curve = max((estimate.curve(name, _SIZES) for name in names), key=len)
        if curve:
            axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=" = ".join(names), color=f"C{index}")
        for name in set(names) & set(at):
            axes.plot(at[name].size, at[name].trainable, "o", markersize=9, color=f"C{index}", fillstyle="none")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([4, 8, 16, 32, 64, 128, 256], labels=["4", "8", "16", "32", "64", "128", "256"])
    axes.set_xlabel("r (Bottleneck: width)")
    axes.set_ylabel("trainable parameters")

    def percent(count: Any) -> Any:
        return 100 * count / estimate.parameters

    def count(percent: Any) -> Any:
        return percent * estimate.parameters / 100

    share = axes.secondary_yaxis("right", functions=(percent, count))
    share.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    share.set_ylabel("% of the base")
    axes.set_title(f"{estimate.model}: {len(estimate.layers)} adapted layers; rings: the table's settings", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)
