"""How much an adapter changes each module, as a picture: a row for each kind of module, a column for each layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import hypot, isfinite, nan
from pathlib import Path

from bone_peft.io.drawing import save_figure
from bone_peft.io.names import printable

from .change_norms import Change, Changes

_LAYER = re.compile(r"\.(\d+)(?=\.|$)")
_EXPERT = re.compile(r"(\.experts)\.\d+(?=\.)")
_LONGEST = 44
"""Letters of a label."""

Grid = dict[str, dict[int | None, Change]]
"""By kind of module and layer; None is of a module that is in no layer, such as the head."""


def draw_changes(changes: Changes, path: str | Path, name: str) -> None:
    """Draw :func:`~bone_peft.files.change_norms.change_norms` into an ``.svg``, ``.png`` or ``.pdf`` file.

    The experts of a layer are one cell, all together.

    Args:
        name: of the adapter, for the title.

    Raises:
        BoneError: another kind of file, or one that is not ours is there.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    grid = by_layer(changes.by_module)
    found = {layer for row in grid.values() for layer in row}
    layers = [*sorted(layer for layer in found if layer is not None), *({None} & found)]
    values = [[_value(row.get(layer)) for layer in layers] for row in grid.values()]
    most = max((value for row in values for value in row if isfinite(value)), default=0.0)

    figure = Figure(figsize=(min(max(0.17 * len(layers) + 4, 6.5), 18), 0.28 * len(grid) + 1.7), layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(values, vmin=0, vmax=most or 1, cmap="viridis", edgecolors="white", linewidth=0.6)
    broken = [
        (column + 0.5, row + 0.5)
        for row, cells in enumerate(grid.values())
        for column, layer in enumerate(layers)
        if layer in cells and not isfinite(values[row][column])
    ]
    if broken:
        axes.plot(*zip(*broken, strict=True), "x", color="#d62728", markersize=6, linestyle="", label="NaN or infinite")
        axes.legend(loc="upper right", bbox_to_anchor=(1, -0.12), frameon=False, fontsize=8)
    axes.invert_yaxis()
    axes.set_yticks([row + 0.5 for row in range(len(grid))], labels=_labels(grid), fontsize=8)
    ticks = [place for place in MaxNLocator(20, integer=True).tick_values(0, len(layers)) if place < len(layers)]
    shown = [int(place) for place in ticks if place >= 0 and layers[int(place)] is not None]
    if None in layers:
        shown.append(len(layers) - 1)
    words = ["none" if layers[place] is None else str(layers[place]) for place in shown]
    axes.set_xticks([place + 0.5 for place in shown], labels=words, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer")
    axes.set_title(f"{printable(name, keep='')}: {_title(changes)}", fontsize=10, loc="left", parse_math=False)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01)
    bar.set_label(_unit(changes), fontsize=9)
    bar.ax.tick_params(labelsize=8)
    save_figure(figure, path)


def by_layer(by_module: dict[str, Change]) -> Grid:
    """Modules by the rest of their name and the number of their layer, experts of one layer together."""
    grid: Grid = {}
    for name, change in by_module.items():
        found = _LAYER.search(name)
        layer = None if found is None else int(found[1])
        kind = name
        if found is not None:
            kind = f"{name[: found.start()]}.*" + _EXPERT.sub(r"\1", name[found.end() :])
        row = grid.setdefault(kind, {})
        row[layer] = _together(row[layer], change) if layer in row else change
    return grid


def _together(one: Change, other: Change) -> Change:
    if one.weight is None or other.weight is None:
        return Change(hypot(one.added, other.added))
    return Change(hypot(one.added, other.added), hypot(one.weight, other.weight))


def _value(change: Change | None) -> float:
    if change is None:
        return nan
    if change.weight is None:
        return change.added
    return change.added / change.weight if change.weight else nan


def _labels(kinds: Iterable[str]) -> list[str]:
    """Without what those in layers have in common before it."""
    kinds = list(kinds)
    starts = {kind.partition("*.")[0] for kind in kinds if "*." in kind}
    start = f"{starts.pop()}*." if len(starts) == 1 else ""
    labels = [kind.removeprefix(start).replace(".*", "") for kind in kinds]
    return [printable(label if len(label) <= _LONGEST else f"...{label[3 - _LONGEST :]}", keep="") for label in labels]


def _title(changes: Changes) -> str:
    if any(change.weight is not None for change in changes.by_module.values()):
        return f"change of each weight ({changes.variant})"
    if changes.is_of_weights:
        return f"norm of each change dW ({changes.variant}); --base says how much of the weight that is"
    return f"norm of the trained tensors ({changes.variant}); --base says how much they change"


def _unit(changes: Changes) -> str:
    if any(change.weight is not None for change in changes.by_module.values()):
        return "|dW| / |W|"
    return "|dW|" if changes.is_of_weights else "|trained tensors|"
