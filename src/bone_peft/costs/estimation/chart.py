"""An estimate as a picture: trainable parameters over the size of an adapter, and the memory of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bone_peft.io.drawing import save_figure

from .estimate import Estimate
from .methods import METHODS

_SIZES = [4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256]


def write_chart(estimate: Estimate, path: str | Path) -> None:
    """Draw an estimate into an ``.svg``, ``.png`` or ``.pdf`` file; without bars of memory where none was worked out.

    Raises:
        BoneError: another kind of file, or one that is not ours is there.
    """
    from matplotlib.figure import Figure

    known = [cost for cost in estimate.costs if cost.training_bytes is not None]
    figure = Figure(figsize=(7, 4.2 + (0.9 + 0.35 * len(known) if known else 0)), layout="constrained")
    heights = [4.2, 0.9 + 0.35 * len(known)] if known else [1]
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _curves(axes[0], estimate)
    if known:
        _bars(axes[1], estimate)
    axes[0].set_title(
        f"{estimate.model}: {len(estimate.layers)} adapted layers; rings: the table's settings", fontsize=10
    )
    save_figure(figure, path)


def _curves(axes: Any, estimate: Estimate) -> None:
    from matplotlib.ticker import FormatStrFormatter

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
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _bars(axes: Any, estimate: Estimate) -> None:
    """Of each method, what a step takes, in its parts."""
    known = [cost for cost in reversed(estimate.costs) if cost.training_bytes is not None]
    base = [estimate.base_bytes for _ in known]
    trained = [2 * cost.file_bytes + cost.optimizer_bytes for cost in known]  # weights, gradients, AdamW's moments
    kept = [(c.training_bytes or 0) - b - t for c, b, t in zip(known, base, trained, strict=True)]
    names, left = [f"{cost.method}, {cost.size}" for cost in known], [0.0] * len(known)
    for parts, words in ((base, "base"), (trained, "adapter, gradients, optimizer"), (kept, "what a step keeps")):
        sizes = [part / 2**30 for part in parts]
        axes.barh(names, sizes, left=left, label=words, height=0.6)
        left = [before + size for before, size in zip(left, sizes, strict=True)]
    axes.set_xlabel("memory of a step (GiB)")
    axes.set_xlim(0, 1.02 * max(left))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
