"""Draws ``docs/pictures/``, what each variant adds to a weight: ``python docs/variants.py``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"
ROWS, COLUMNS, SIDE = 3, 4, 48
WIDE, HIGH = COLUMNS * SIDE, ROWS * SIDE
TOP, LEFT = 74, 40
_RIGHT = LEFT + WIDE + 110
_INK, _FAINT, _CARD, _FROZEN, _EDGE = "#1f2933", "#52606d", "#f7f9fb", "#d9e0e7", "#ffffff"
_NEW = "W\N{PRIME}"
_TRAINED = ("#7fb3e6", "#f2b872", "#8ccf9f", "#c9a4e0")


def box(x: float, y: float, width: float, height: float, fill: str, name: str = "", dashed: bool = False) -> str:
    """A rectangle with its name in the middle."""
    edge = f'stroke="{_INK}" stroke-dasharray="4 3"' if dashed else f'stroke="{_EDGE}"'
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{fill}" {edge} stroke-width="2"/>'
    return shape + (words(x + width / 2, y + height / 2 + 5, name) if name else "")


def words(x: float, y: float, text: str, size: int = 15, faint: bool = False, anchor: str = "middle") -> str:
    """One line of text; what follows ``_`` stands low."""
    main, _, low = text.partition("_")
    below = f'<tspan font-size="{size * 0.7:.1f}" dy="4">{low}</tspan>' if low else ""
    color = _FAINT if faint else _INK
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{main}{below}</text>'


def grid(x: float, y: float, fills: Iterable[Iterable[str]], name: str = "") -> str:
    """The blocks of a weight: a colour for each, row by row."""
    return "".join(
        box(x + i * SIDE, y + o * SIDE, SIDE, SIDE, fill, f"{name}_{o + 1}{i + 1}" if name else "")
        for o, row in enumerate(fills)
        for i, fill in enumerate(row)
    )


def sides(x: float, y: float, width: float, height: float, rows: str, columns: str) -> str:
    """How many rows and columns a matrix has, at its left and below it."""
    middle = y + height / 2
    left = f'<g transform="rotate(-90 {x - 9} {middle})">{words(x - 9, middle, rows, 12, True)}</g>'
    return left + words(x + width / 2, y + height + 17, columns, 12, True)


def frozen(name: str = "W") -> str:
    return box(LEFT, TOP, WIDE, HIGH, _FROZEN, name) + sides(LEFT, TOP, WIDE, HIGH, "out", "in")


def bone() -> str:
    x = LEFT + WIDE + 60
    strips = [box(x + i * SIDE, TOP, SIDE, HIGH, _TRAINED[0], "Dᵀ") for i in range(COLUMNS - 1)]
    last = x + (COLUMNS - 1) * SIDE
    strips += [
        box(last, TOP, SIDE * 0.6, HIGH, _TRAINED[0]),
        box(last + SIDE * 0.6, TOP, SIDE * 0.4, HIGH, "none", dashed=True),
    ]
    plus = words(x - 37, TOP + HIGH / 2 + 8, "+", 26)
    text = words(x + SIDE / 2, TOP + HIGH + 17, "r", 12, True) + words(
        last, TOP + HIGH + 17, "the last is cut off", 12, True
    )
    return frozen() + plus + "".join(strips) + text


def bat() -> str:
    blocks = [box(_RIGHT - SIDE - 20, TOP + o * SIDE, SIDE, SIDE, _TRAINED[o], f"B_{o + 1}") for o in range(ROWS)]
    return _new_in_blocks(blocks, [[_TRAINED[o]] * COLUMNS for o in range(ROWS)], "a block for each row")


def bat_input() -> str:
    places = [(_RIGHT + i * SIDE, TOP - 22 - SIDE + 4) for i in range(COLUMNS)]
    blocks = [box(*place, SIDE, SIDE, _TRAINED[i], f"D_{i + 1}") for i, place in enumerate(places)]
    return _new_in_blocks(blocks, [_TRAINED[:COLUMNS]] * ROWS, "a block for each column")


def bottleneck() -> str:
    x = LEFT + WIDE + 45
    up = box(x + 10, TOP, 30, HIGH, _TRAINED[0], "up") + sides(x + 10, TOP, 30, HIGH, "out", "w")
    down = box(x + 80, TOP, WIDE, 30, _TRAINED[1], "down") + sides(x + 80, TOP, WIDE, 30, "w", "in")
    signs = words(x - 32, TOP + HIGH / 2 + 8, "+", 26) + words(x + 54, TOP + 21, "·", 26)
    return frozen() + signs + up + down


def _new_in_blocks(blocks: Iterable[str], fills: Iterable[Iterable[str]], text: str) -> str:
    """The weight in blocks, what is trained, and the new weight in the colours of it."""
    weight = grid(LEFT, TOP, [[_FROZEN] * COLUMNS] * ROWS, "W") + sides(LEFT, TOP, WIDE, HIGH, "out", "in")
    arrow = words(LEFT + WIDE + 22, TOP + HIGH / 2 + 8, "→", 22)
    below = words(_RIGHT + WIDE / 2, TOP + HIGH + 17, text, 12, True)
    return weight + arrow + "".join(blocks) + grid(_RIGHT, TOP, fills, _NEW) + below


DRAWN = {
    "bone": ("Bone: one block D (r, out), in every place", bone),
    "bat": ("Bat: a block B (r, r) for each row of blocks", bat),
    "bat-input": ("Input-shared Bat: a block D (r, r) for each column of blocks", bat_input),
    "bottleneck": ("Bottleneck: a product of two matrices", bottleneck),
}


def picture(name: str) -> str:
    """The SVG of a variant. It has a ground of its own, so that it can be read on a light page and on a dark one."""
    title, draw = DRAWN[name]
    width, bottom = LEFT + 2 * WIDE + 140, TOP + HIGH + 34
    top = 0 if name == "bat-input" else TOP - 24
    place = f"0 {top} {width} {bottom - top}"
    ground = f'<rect y="{top}" width="{width}" height="{bottom - top}" rx="8" fill="{_CARD}"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{place}" font-family="sans-serif" role="img">'
        f"<title>{title}</title>{ground}{draw()}</svg>\n"
    )


if __name__ == "__main__":
    for drawn in DRAWN:
        (FOLDER / f"{drawn}.svg").write_text(picture(drawn), encoding="utf-8")
        print(f"docs/pictures/{drawn}.svg")
