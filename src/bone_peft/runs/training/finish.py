"""After the last step: what is dear is written first, what is nice to have follows, and only what is missing."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from bone_peft.files.kinds import ADAPTER
from bone_peft.io.whole import whole_folder

from .recipe import Recipe
from .report import write_report
from .result import TrainResult
from .run_folder import RunFolder

_TOKENS = 64


def save_adapter(model: Any, tokenizer: Any, recipe: Recipe, run: RunFolder) -> None:
    """Write the adapter's folder, whole or not at all."""
    with whole_folder(run.adapter, ADAPTER, replace=True) as staging:
        for config in model.peft_config.values():
            config.base_model_name_or_path = recipe.base
        model.save_pretrained(str(staging))
        tokenizer.save_pretrained(str(staging))


def is_complete(result: TrainResult, run: RunFolder) -> bool:
    """True when nothing of a finished run is missing."""
    return bool(result.samples) and run.report.is_file()


def complete(
    model: Any, tokenizer: Any, rows: Any, recipe: Recipe, run: RunFolder, result: TrainResult, console: Console
) -> None:
    """Add sample answers to the result, and write the report."""
    from ..evaluation import answer_samples

    if not result.samples:
        with Progress(
            TextColumn("answering sample questions"),
            BarColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        ) as progress:
            task = progress.add_task("", total=_TOKENS)
            result.samples = answer_samples(
                model, tokenizer, rows, max_new_tokens=_TOKENS, on_token=lambda: progress.advance(task)
            )
        result.save(run.result)
    write_report(run, recipe, result)
