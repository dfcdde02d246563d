"""``bone init``."""

from pathlib import Path
from typing import Annotated

import typer

from bone_peft.errors import BoneError

from .console import TRUST, console
from .recipe_flags import one_or_more

_HELP = """Begin a recipe for your base and your rows, with a word on every key that you are likely to change.

[bold]Examples[/]

  bone init --base ./llama --data rows.jsonl               [dim]# writes bone.yaml[/]

  bone init --base ./llama --data sums.jsonl --fields question answer --out sums.yaml

  bone init --method dpo --base ./llama --data pairs.jsonl [dim]# prompt, chosen, rejected[/]

  bone train bone.yaml --dry-run                           [dim]# then: rows as the model sees them, memory, time[/]

  bone train bone.yaml

The rows are read as `bone train` reads them, so what is wrong with them shows here. No weights are loaded.
"""


def add_to(app: typer.Typer) -> None:
    app.command(name="init", help=_HELP)(init)


def init(
    *,
    base: str = typer.Option(..., help="Model folder, hub name, .gguf file, RWKV .pth file, or package:NAME."),
    data: Annotated[list[str], typer.Option(metavar="SOURCE", help="Training rows; repeat it for more.")],
    method: str = typer.Option("sft", help="sft, or dpo for pairs of answers."),
    eval_data: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="Held-out rows; default: some of the others.")
    ] = None,
    fields: tuple[str, str] = typer.Option(
        None, metavar="PROMPT COMPLETION", help="Names of the two columns; default: as they are found."
    ),
    chat_template: str = typer.Option(None, help="For a base without one: chatml, llama3, or a file."),
    out: str = typer.Option("bone.yaml", help="The recipe."),
    force: bool = typer.Option(False, "--force", help="Replace a recipe that bone init began."),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=TRUST),
) -> None:
    import re

    from bone_peft.io.ours import FileOf
    from bone_peft.io.whole import check_free, whole_file
    from bone_peft.runs.training.first_recipe import MARK, first_recipe

    kind = FileOf(re.compile(MARK.encode()))
    if Path(out).suffix not in (".yaml", ".yml"):
        raise BoneError(f"A recipe is a .yaml file, and {out} is none: choose another name.")
    check_free(out, kind, replace=force)
    text = first_recipe(
        base,
        one_or_more(data),
        method=method,
        eval_data=one_or_more(eval_data) if eval_data else None,
        fields=fields,
        chat_template=chat_template,
        out=f"runs/{Path(out).stem}",
        trust_remote_code=trust_remote_code,
    )
    with whole_file(out, kind, replace=force) as file:
        file.write_text(text, encoding="utf-8")
    console().print(f"{out} is written. Look at it, then: bone train {out} --dry-run", markup=False)
