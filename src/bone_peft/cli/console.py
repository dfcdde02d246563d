"""Where commands print, and the tables they share."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from bone_peft.runs.evaluation import Score

TRUST = "Run the Python code that the base brings along."


def speaks() -> bool:
    """True in the one process that talks for all that ``accelerate launch`` started."""
    return os.environ.get("RANK", "0") == "0"


def console() -> Console:
    """Where a command prints: paths stay on one line, and only one process of several speaks."""
    return Console(quiet=not speaks(), soft_wrap=True, highlight=False)


def score_table(scores: "dict[str, Score]", title: str | None = None) -> Table:
    """Exact match and loss by model."""
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for name in ("exact match", "loss", "rows"):
        table.add_column(name, justify="right")
    for name, score in scores.items():
        table.add_row(name, f"{score.exact_match:.1%}", f"{score.loss:.4f}", str(score.rows))
    return table


class ScoringProgress:
    """A live line per model that is scored; says nothing where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("scoring {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> "Callable[[str, int], Callable[[int], None]]":
        self.progress.start()
        return self._subject

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def _subject(self, name: str, rows: int) -> Callable[[int], None]:
        task = self.progress.add_task(name, total=rows)
        return lambda count: self.progress.advance(task, count)
