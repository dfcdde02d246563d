"""The loss curve as a picture."""

from io import StringIO
from pathlib import Path
from typing import Any

INK, FAINT, LINE, RAW, HELD_OUT = "#1f2933", "#c9d1d9", "#2563a8", "#9db9d6", "#c2571a"
"""The colours of a picture. A page may put its own in their place, for the night."""

_SMOOTHED_FROM = 20
"""Points; fewer are drawn as they are."""


def plot_loss(history: list[dict[str, Any]], path: str | Path | StringIO, kind: str = "png", *, axis: str) -> None:
    """Draw training loss (and held-out loss, where it was measured) over steps.

    Args:
        history: the Trainer's log: entries with ``step`` and ``loss`` or ``eval_loss``.
        path: the file to write.
        axis: what its loss is, with the unit.
        kind: ``"png"``, or ``"svg"`` with a background that is not painted.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "bone", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, 3.6), dpi=150, layout="constrained")
        axes = figure.subplots()
        train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
        if train:
            steps, losses = zip(*train, strict=True)
            smooth = len(losses) >= _SMOOTHED_FROM
            if smooth:
                axes.plot(steps, losses, color=RAW, linewidth=0.8)
            label = "training (smoothed)" if smooth else "training"
            axes.plot(steps, smoothed(losses) if smooth else losses, color=LINE, linewidth=1.6, label=label)
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o-", color=HELD_OUT, markersize=4, linewidth=1.4, label="held out")
            axes.legend(frameon=False, labelcolor=INK)
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel(axis, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
        figure.savefig(path, format=kind, transparent=kind == "svg", metadata={"Date": None} if kind == "svg" else None)


def smoothed(values: Any) -> list[float]:
    """A mean over the last twentieth or so of the values, in which older ones count less and less."""
    keep = 1 - 1 / max(len(values) / 20, 2)
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means
