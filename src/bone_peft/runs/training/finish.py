"""After the last step: what is dear is written first, what is nice to have follows, and only what is missing."""

from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from bone_peft.files.kinds import ADAPTER
from bone_peft.io.place import expanded
from bone_peft.io.whole import whole_folder
from bone_peft.method.compat.zero3 import run_without_its_engine
from bone_peft.method.tuner.saved import gathered
from bone_peft.method.tuner.sharded import is_spread

from .adapter_card import write_adapter_card
from .recipe import Recipe
from .report import write_report
from .result import TrainResult
from .run_folder import RunFolder

_TOKENS = 64


def save_adapter(model: Any, tokenizer: Any, recipe: Recipe, run: RunFolder, result: TrainResult) -> None:
    """Write the adapter's folder, whole or not at all. Every process calls it, and the first one writes."""
    tensors = gathered(model) if is_spread(model) else None
    if not PartialState().is_main_process:
        return
    with whole_folder(run.adapter, ADAPTER, replace=True) as staging:
        for config in model.peft_config.values():
            config.base_model_name_or_path = _from_anywhere(recipe.base)
        model.save_pretrained(str(staging), state_dict=tensors, selected_adapters=[model.active_adapter])
        tokenizer.save_pretrained(str(staging))
        write_adapter_card(staging, model.active_peft_config, recipe, result)


def _from_anywhere(base: str) -> str:
    """The name of a base, so that it is found from another folder too."""
    path = expanded(base)
    return str(path.absolute()) if path.exists() else base


def is_complete(result: TrainResult, run: RunFolder) -> bool:
    """True when nothing of a finished run is missing."""
    return bool(result.samples) and run.report.is_file()


def complete(
    model: Any, tokenizer: Any, rows: Any, recipe: Recipe, run: RunFolder, result: TrainResult, console: Console
) -> None:
    """Add sample answers to the result, and write the report. Every process calls it, and the first one writes."""
    from ..evaluation import answer_samples

    is_first = PartialState().is_main_process
    if not is_first and not is_spread(model):
        return
    if not result.samples:
        bar = Progress(
            TextColumn("answering sample questions"),
            BarColumn(),
            console=console,
            disable=not console.is_interactive,
            transient=True,
        )
        with bar as progress, run_without_its_engine(model):
            task = progress.add_task("", total=2 * _TOKENS)
            told: dict[str, Any] = {"max_new_tokens": _TOKENS, "on_token": lambda: progress.advance(task)}
            adapted = answer_samples(model, tokenizer, rows, **told)
            with model.disable_adapter():
                plain = answer_samples(model, tokenizer, rows, **told)
            pairs = zip(adapted, plain, strict=True)
            result.samples = [{**sample, "base": before["answer"]} for sample, before in pairs]
        if is_first:
            result.save(run.result)
    if is_first:
        write_report(run, recipe, result)
