"""A study in pictures: quality over cost, over the learning rate, and over the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bone_peft.io.drawing import save_figure

from .compared import METHODS
from .search import Results
from .study import Study
from .summary import Line

_WORDS = {"loss": "test loss (nats a token)", "exact_match": "exact match", "final_answer": "final answers right"}


def draw(study: Study, results: Results, lines: Sequence[Line], folder: Path) -> list[Path]:
    """Draw all charts into ``folder``; those that there is nothing for are left out."""
    styles = _styles(study)
    drawn: list[Path] = []
    for name, fill in (
        ("over-time.svg", lambda axes: _front(axes, study, lines, styles, "step_ms", 1.0, "time of a step (ms)")),
        ("over-memory.svg", lambda axes: _front(axes, study, lines, styles, "peak_bytes", 2**30, "peak memory (GiB)")),
        ("over-rate.svg", lambda axes: _rates(axes, study, results, styles)),
        ("over-steps.svg", lambda axes: _curves(axes, results, lines, styles)),
    ):
        if _chart(folder / name, fill):
            drawn.append(folder / name)
    return drawn


def _styles(study: Study) -> dict[str, dict[str, str]]:
    """Ours in colours and full lines, others in greys and dashes."""
    names = list(study.methods)
    ours = [name for name in names if METHODS[name].is_ours]
    colors = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
    peers = [name for name in names if name not in ours]
    marks = "sv^Dph*X<>"
    styles = {name: {"color": colors[i % len(colors)], "marker": "o", "linestyle": "-"} for i, name in enumerate(ours)}
    for i, name in enumerate(peers):
        grey = str(0.25 + 0.5 * i / len(peers))
        styles[name] = {"color": grey, "marker": marks[i % len(marks)], "linestyle": "--"}
    return styles


def _chart(path: Path, fill: Callable[[Any], bool]) -> bool:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    if not fill(axes):
        return False
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)
    return True


def _front(
    axes: Any, study: Study, lines: Sequence[Line], styles: Mapping[str, Any], cost: str, unit: float, words: str
) -> bool:
    """What a method gives, over what it takes."""
    judge = study.judge
    some = [line for line in lines if judge in line.means and getattr(line, cost) is not None]
    for line in some:
        style = {**styles[line.method], "linestyle": ""}
        error = line.errors.get(judge)
        axes.errorbar(getattr(line, cost) / unit, line.means[judge], yerr=error, label=line.method, capsize=3, **style)
    axes.set_xlabel(words)
    axes.set_ylabel(_WORDS[judge])
    axes.margins(0.1)
    return bool(some)


def _rates(axes: Any, study: Study, results: Results, styles: Mapping[str, Any]) -> bool:
    """The first seed of every learning rate."""
    judge, any_is = study.judge, False
    for name in study.methods:
        own = sorted((t.rate, r[judge]) for t, r in results.items() if t.method == name and t.seed == 0 and judge in r)
        if own:
            axes.plot(*zip(*own, strict=True), label=name, **styles[name])
            any_is = True
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xlabel("learning rate")
    axes.set_ylabel(_WORDS[judge])
    return any_is


def _curves(axes: Any, results: Results, lines: Sequence[Line], styles: Mapping[str, Any]) -> bool:
    """The loss on held-out rows while the best runs go on; what they begin with is left out."""
    any_is = False
    for line in lines:
        best = [r for t, r in results.items() if t.method == line.method and t.rate == line.rate and t.seed == 0]
        points = [(step, loss) for step, loss in (best[0].get("curve", []) if best else []) if step > 0]
        if points:
            style = {**styles[line.method], "marker": ""}
            axes.plot(*zip(*points, strict=True), label=f"{line.method}, {line.rate:g}", **style)
            any_is = True
    axes.set_xlabel("step")
    axes.set_ylabel("loss on held-out rows")
    return any_is
