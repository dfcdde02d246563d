"""Draws ``docs/house.svg``, what uses what in ``src/bone_peft``, from the imports: ``python docs/house.py``."""

from __future__ import annotations

import importlib
import json
import pkgutil
import tomllib
from pathlib import Path
from textwrap import wrap
from typing import Any

import grimp
import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "house.svg"
_INK, _FAINT, _WALL, _ARROW = "#1f2933", "#5b6875", "#eef2f6", "#2563a8"
_LEFT, _RIGHT, _HEIGHT, _STEP = 0.9, 9.3, 1.25, 1.5


def storeys() -> list[list[str]]:
    """The wings from the top down, as pyproject.toml orders them; those on one level do not know each other."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(c["layers"] for c in settings["contracts"] if c.get("containers") == ["bone_peft"])
    return [[wing.strip() for wing in layer.split("|")] for layer in layers]


def uses() -> dict[str, list[str]]:
    """Which wings each wing imports from."""
    graph = grimp.build_graph("bone_peft", cache_dir=None)
    wings = [wing for storey in storeys() for wing in storey]
    found: dict[str, list[str]] = {}
    for wing in wings:
        modules = {f"bone_peft.{wing}", *graph.find_descendants(f"bone_peft.{wing}")}
        imported = {name for module in modules for name in graph.find_modules_directly_imported_by(module)}
        names = {name.split(".")[1] for name in imported if "." in name}
        found[wing] = [other for other in wings if other in names - {wing}]
    return found


def inside(wing: str) -> list[str]:
    """The folders of a wing, or its files if it has none."""
    entries = list(pkgutil.iter_modules([str(ROOT / "src" / "bone_peft" / wing)]))
    return [f"{entry.name}/" for entry in entries if entry.ispkg] or [entry.name for entry in entries]


def facts() -> str:
    """What the picture shows, as text; it is kept in the picture."""
    return json.dumps({wing: {"inside": inside(wing), "uses": used} for wing, used in uses().items()})


def draw(path: Path) -> None:
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bone-peft", "font.family": "sans-serif"})
    levels, used = storeys(), uses()
    figure = Figure(figsize=(11, _STEP * len(levels)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11), ylim=(-0.2, len(levels) * _STEP))
    axes.axis("off")
    places: dict[str, tuple[float, float, float]] = {}
    for level, names in enumerate(reversed(levels)):
        width = (_RIGHT - _LEFT - 0.3 * (len(names) - 1)) / len(names)
        for index, wing in enumerate(names):
            x = _LEFT + index * (width + 0.3)
            places[wing] = x, x + width, level * _STEP
            _wall(axes, wing, *places[wing])
    _lanes(axes, used, places, levels[-1])
    figure.savefig(path, format="svg", metadata={"Date": None, "Description": facts()})


def _wall(axes: Any, wing: str, left: float, right: float, bottom: float) -> None:
    box = {"boxstyle": "round,pad=0,rounding_size=0.08", "linewidth": 0.8}
    axes.add_patch(FancyBboxPatch((left, bottom), right - left, _HEIGHT, facecolor=_WALL, edgecolor=_FAINT, **box))
    top, columns = bottom + _HEIGHT, int((right - left) * 14)
    rooms = inside(wing)
    axes.text(
        left + 0.15, top - 0.14, f"{wing}/" if rooms else f"{wing}.py", color=_INK, weight="bold", size=12, va="top"
    )
    says = (importlib.import_module(f"bone_peft.{wing}").__doc__ or "").splitlines()[0].replace("``", "")
    axes.text(
        left + 1.1, top - 0.16, "\n".join(wrap(says, columns - 16)), color=_FAINT, size=9, va="top", linespacing=1.3
    )
    names = "\n".join(wrap(", ".join(rooms), columns))
    axes.text(left + 0.15, bottom + 0.12, names, color=_INK, size=9, va="bottom", linespacing=1.3)


def _lanes(
    axes: Any, used: dict[str, list[str]], places: dict[str, tuple[float, float, float]], ground: list[str]
) -> None:
    """One lane for each wing that others use: they join it at a dot, and it ends in an arrow. All use the ground."""
    outside = {"left": _LEFT - 0.3, "right": _RIGHT + 0.3}
    for target in (wing for wing in reversed(places) if wing not in ground):
        users = [wing for wing, others in used.items() if target in others]
        if not users:
            continue
        # What does not reach to the right wall is entered from the left.
        side, sign = ("right", 1) if places[target][1] == _RIGHT else ("left", -1)
        lane = outside[side]
        outside[side] += sign * 0.3
        wall, end = _RIGHT if sign > 0 else _LEFT, places[target][2] + _HEIGHT * 0.65
        starts = [places[wing][2] + _HEIGHT * 0.35 for wing in users]
        for start in starts:
            axes.plot([wall, lane], [start, start], color=_ARROW, linewidth=1)
            axes.plot([lane], [start], "o", color=_ARROW, markersize=4)
        axes.plot([lane, lane], [max(starts), end], color=_ARROW, linewidth=1)
        line = {"arrowstyle": "-|>", "color": _ARROW, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=(wall, end), xytext=(lane, end), arrowprops=line)


if __name__ == "__main__":
    draw(PICTURE)
    print(PICTURE.relative_to(ROOT))
