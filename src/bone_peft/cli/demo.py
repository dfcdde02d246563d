"""``bone demo``."""

from typing import TYPE_CHECKING

import typer
from rich.table import Table

if TYPE_CHECKING:
    from datasets import Dataset

    from bone_peft.runs.evaluation import Score
    from bone_peft.runs.training import TrainResult

_HELP = """The main job on real input, in minutes on two cores.

Scores SmolLM2-135M-Instruct on held-out questions about families, fine-tunes it with Bone, merges, scores again and
answers a prompt.
It runs the shipped recipe `demo` through the same functions as the other commands.

[bold]Examples[/]

  bone demo

  bone demo --out runs/short --steps 20 --force
"""
_PROMPT = (
    "Anna is married to Paul. They have a child called Emma. Emma is married to Tom. They have a child called Lily.\n\n"
    "What is Anna to Lily? Answer with a single word."
)


def add_to(app: typer.Typer) -> None:
    app.command(name="demo", help=_HELP)(demo)


def demo(
    *,
    out: str = typer.Option("runs/demo", help="Folder of the run."),
    steps: int = typer.Option(None, min=1, help="Optimizer steps; default: the recipe's."),
    eval_rows: int = typer.Option(None, min=1, help="Held-out problems to score; default: all of the recipe's."),
    force: bool = typer.Option(False, "--force", help="Replace a run that OUT holds."),
) -> None:
    from bone_peft.files import kinds
    from bone_peft.files.bases import load_base
    from bone_peft.files.merging import merge
    from bone_peft.io.whole import check_free
    from bone_peft.runs.data import load_data
    from bone_peft.runs.evaluation import Subject, evaluate, stream_answer
    from bone_peft.runs.training import Recipe, train
    from bone_peft.runs.training.report import write_report
    from bone_peft.runs.training.run_folder import RunFolder

    from .console import ScoringProgress, console

    screen = console()
    values = {"out": out} | ({"training.max_steps": steps} if steps is not None else {})
    recipe = Recipe.load("demo").with_values(values)
    run = RunFolder(recipe.out)
    run.check_free(resume=False, force=force)
    merged = f"{recipe.out}/merged"
    check_free(merged, kinds.merged(), replace=force)

    def held_out(tokenizer: object) -> "Dataset":
        rows = load_data(recipe.eval_data or [], tokenizer=tokenizer, chat=recipe.chat, template=recipe.template)
        return rows if eval_rows is None else rows.select(range(min(eval_rows, len(rows))))

    def scores_of(**subjects: Subject) -> "dict[str, Score]":
        with ScoringProgress(screen) as on_subject:
            return evaluate(
                subjects,
                held_out,
                dtype=recipe.dtype,
                on_subject=on_subject,
                batch_size=32,
            )

    screen.rule("before", align="left")
    before = scores_of(before=Subject(recipe.base))
    screen.print(f"exact match {before['before'].exact_match:.1%}, loss {before['before'].loss:.4f}")
    screen.rule("train", align="left")
    result = train(recipe, force=force, console=screen)
    screen.rule("merge", align="left")
    merge(recipe.base, result.adapter, merged, dtype=recipe.dtype, force=force)
    scores = before | scores_of(after=Subject(recipe.base, result.adapter), merged=Subject(merged))
    write_report(run, recipe, result, scores)
    screen.rule("one prompt, the merged model", align="left")
    screen.print(_PROMPT)
    stream_answer(*load_base(merged, dtype=recipe.dtype), _PROMPT, max_new_tokens=32, chat=recipe.chat)
    screen.rule("result", align="left")
    screen.print(_table(scores, result))
    screen.print(f"Report: {run.report}")


def _table(scores: "dict[str, Score]", result: "TrainResult") -> Table:
    """The whole demo at a glance; what only training has is under the model it made."""
    table = Table()
    table.add_column("")
    for name in scores:
        table.add_column(name, justify="right")
    table.add_row("exact match", *(f"{score.exact_match:.1%}" for score in scores.values()))
    table.add_row("loss (nats per token)", *(f"{score.loss:.4f}" for score in scores.values()))
    for name, value in {
        "trainable parameters": f"{result.trainable_parameters:,}",
        "training seconds": f"{result.seconds:.0f}",
        "tokens/s": f"{result.tokens_per_second:,.0f}",
        "peak memory": f"{result.peak_memory_bytes / 2**30:.1f} GiB",
    }.items():
        table.add_row(name, *(value if column == "after" else "" for column in scores))
    return table
