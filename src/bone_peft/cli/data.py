"""``bone data``."""

from typing import Annotated

import typer

from .console import say

_HELP = """Rows in the form that other programs read.

[bold]Example[/]

  bone data to-binidx rows.jsonl --out data/rows     [dim]# data/rows.bin and data/rows.idx[/]
"""
_TO_BINIDX = """Write rows as RWKV's binidx, in tokens of the World vocabulary.

A row is a document: its text, or prompt and answer. `--data OUT` reads it again, and so do RWKV-LM and RWKV-PEFT.
"""


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help=_HELP, no_args_is_help=True)
    group.command(name="to-binidx", help=_TO_BINIDX)(to_binidx)
    app.add_typer(group, name="data")


def to_binidx(
    data: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Rows, as for `bone train --data`.")],
    *,
    out: str = typer.Option(..., help="Name of the two files, without .bin and .idx."),
    fields: tuple[str, str] = typer.Option(
        None, metavar="PROMPT COMPLETION", help="Names of the two columns; default: as they are found."
    ),
    template: str = typer.Option(None, help='Around them, as in "User: {prompt}\\n\\nAssistant: {completion}".'),
    force: bool = typer.Option(False, "--force", help="Replace binidx data of this name."),
) -> None:
    from bone_peft.runs.data.to_binidx import to_binidx as run

    documents, tokens = run(data, out, fields=fields, template=template, replace=force)
    say(f"{out}.bin: {documents:,} documents, {tokens:,} tokens.")
