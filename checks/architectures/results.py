"""The results of the sweep, kept as JSON lines: one architecture a line."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .kinds import KINDS

RESULTS = Path(__file__).with_name("results.jsonl")
Row = dict[str, Any]
Rows = dict[tuple[str, str], Row]


def versions() -> str:
    """What the results depend on, as it is installed."""
    return ", ".join(f"{name} {version(name)}" for name in ("bone-peft", "peft", "transformers", "torch"))


def read(path: Path) -> Rows:
    """The last row of each kind and architecture."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["kind"], row["name"]): row for row in rows}


def add(path: Path, row: Row) -> None:
    """Write it at the end at once, so that nothing is lost if the sweep is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def tidy(path: Path) -> None:
    """Keep one row for each architecture that is still known, in order."""
    rows = read(path)
    known = [(kind, name) for kind, names in KINDS.items() for name in names]
    lines = [json.dumps(rows[key]) + "\n" for key in known if key in rows]
    whole = path.with_suffix(".tmp")
    whole.write_text("".join(lines), encoding="utf-8")
    whole.replace(path)


def outcome(row: Row) -> str:
    """``right``, ``refused``, ``wrong`` or ``does not run``, over all methods that were tried."""
    if "fails" in row:
        return "does not run"
    outcomes = {tried["outcome"] for tried in row["methods"].values()}
    return next((o for o in ("wrong", "refused") if o in outcomes), "right")
