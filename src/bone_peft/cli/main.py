"""``bone``: the commands, and the one place where failures become a sentence and an exit code."""

import signal
import sys
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperGroup

import bone_peft
from bone_peft.errors import BoneError, explains_missing_extras
from bone_peft.io.whole import is_full_disk

from . import (
    activate,
    bench,
    chat,
    compare,
    convert,
    data,
    demo,
    estimate,
    evaluate,
    generate,
    init,
    inspect,
    merge,
    train,
)
from .console import complain
from .process import cleaning_up_when_terminated, keep_freed_memory, leave_full_disks_to_the_main_thread, quiet


class Sentences(TyperGroup):
    """One sentence and exit code 2 for what the user can mend, 128 + n for signal n; all else is our bug and shows."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return explains_missing_extras(super().invoke)(ctx)
        except BoneError as error:
            complain(str(error))
            raise typer.Exit(2) from error
        except KeyboardInterrupt as stop:
            complain(str(stop) or "Stopped.")
            raise typer.Exit(128 + getattr(stop, "number", signal.SIGINT)) from stop
        except OSError as error:
            if is_full_disk(error):
                complain(f"No space left on the disk: {error}.")
            elif error.filename is not None:
                complain(f"{error.filename}: {error.strerror}.")
            else:
                raise
            raise typer.Exit(2) from error
        except Exception as error:
            # Torch's own class, without loading torch for it.
            if not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
                raise
            complain("There is not enough memory for this; try a smaller batch, shorter rows, or a smaller dtype.")
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=Sentences,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune language models with Bone, Bat and Bottleneck. Start with: [bold]bone demo[/]",
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bone-peft {bone_peft.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    verbose: bool = typer.Option(False, "--verbose", help="Show the libraries' own messages and progress bars."),
    version: bool = typer.Option(False, "--version", callback=_tell_version, is_eager=True, help="Print the version."),
) -> None:
    if not verbose:
        quiet()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no such letter is no reason to fail.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    leave_full_disks_to_the_main_thread()
    keep_freed_memory()


for command in (
    init,
    train,
    evaluate,
    compare,
    merge,
    convert,
    inspect,
    estimate,
    bench,
    generate,
    chat,
    data,
    demo,
    activate,
):
    command.add_to(app)


def main() -> None:
    """Entry point of the installed command."""
    try:
        with cleaning_up_when_terminated():
            app(prog_name="bone")
    except (KeyboardInterrupt, SystemExit) as end:
        # A signal before the command begins, or after its end, is none to `Sentences`.
        cause: BaseException | None = end
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise SystemExit(128 + getattr(cause, "number", signal.SIGINT)) from None
