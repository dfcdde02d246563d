"""The loss curve as a picture."""

from pathlib import Path
from typing import Any

_INK, _FAINT, _LINE, _HELD_OUT = "#1f2933", "#c9d1d9", "#2563a8", "#c2571a"


def plot_loss(history: list[dict[str, Any]], path: str | Path) -> None:
    """Draw training loss (and held-out loss, where it was measured) over steps into a PNG.

    Args:
        history: the Trainer's log: entries with ``step`` and ``loss`` or ``eval_loss``.
        path: the PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if train:
        axes.plot(*zip(*train, strict=True), color=_LINE, linewidth=1.4, label="training")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color=_HELD_OUT, markersize=4, linewidth=1.4, label="held out")
        axes.legend(frameon=False, labelcolor=_INK)
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("loss (nats per token)", color=_INK)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=_FAINT, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9)
    figure.savefig(path, format="png")
