"""Where commands print, and the tables they share."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bone_peft.io.names import printable

if TYPE_CHECKING:
    from bone_peft.runs.evaluation import Score

# A wrong value may be as long as a file.
_LONGEST = 2000
TRUST = "Run the Python code that the base brings along."


def speaks() -> bool:
    """True in the one process that talks for all that ``accelerate launch`` started."""
    return os.environ.get("RANK", "0") == "0"


class Screen(Console):
    """Shows text as it is: what comes from files can neither style it nor move the cursor."""

    def __init__(self, **options: Any) -> None:
        super().__init__(quiet=not speaks(), markup=False, emoji=False, **options)
        if not self.file.isatty():
            self.is_interactive = False  # FORCE_COLOR, as in a notebook, asks for colours, and for no lines that move

    def render_str(self, text: str, *args: Any, **options: Any) -> Text:
        return super().render_str(printable(text), *args, **options)


def console() -> Screen:
    """Where a command prints lines: they are not broken, and only one process of several speaks."""
    return Screen(soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """Print a line."""
    typer.echo(printable(line))


def complain(sentence: str) -> None:
    """Print what went wrong, on one line of standard error."""
    if len(sentence) > _LONGEST:
        sentence = f"{sentence[:_LONGEST]}..."
    if speaks():
        typer.secho(printable(sentence, keep=""), err=True, fg=typer.colors.RED)


def score_table(scores: "dict[str, Score]", title: str | None = None) -> Table:
    """Matches and loss by model."""
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    some = [key for key in ("final_answer", "choice") if any(getattr(s, key) is not None for s in scores.values())]
    for name in ("exact match", *(key.replace("_", " ") for key in some), "loss", "rows"):
        table.add_column(name, justify="right")
    for name, score in scores.items():
        more = [f"{getattr(score, key):.1%}" for key in some]
        table.add_row(name, f"{score.exact_match:.1%}", *more, f"{score.loss:.4f}", str(score.rows))
    return table


class ScoringProgress:
    """A live line per model that is scored; says nothing where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("scoring {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_interactive,
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
