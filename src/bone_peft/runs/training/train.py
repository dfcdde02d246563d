"""``train``: one run from recipe to adapter, read top to bottom."""

import json
import time
from dataclasses import asdict
from typing import Any

from rich.console import Console

from bone_peft.costs.measure import device_name, peak_memory_bytes
from bone_peft.errors import BoneError
from bone_peft.files.bases import load_adapter, load_base
from bone_peft.files.kinds import ADAPTER
from bone_peft.io.whole import full_disk_is_explained, whole_file, whole_folder

from ..data import load_data, without
from .callbacks import ProgressReport, StopOnInterrupt, UnusedAdapters
from .publishing import Publish
from .recipe import Recipe
from .result import TrainResult
from .run_folder import RunFolder


class TrainingStopped(KeyboardInterrupt):
    """The user stopped the run; the message says where it stands and how to continue.

    Attributes:
        number: of the signal that it was stopped by.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def train(recipe: Recipe, *, resume: bool = False, force: bool = False, console: Console | None = None) -> TrainResult:
    """Run ``recipe``: load, train, save the adapter, write the report. Every process of a distributed run calls it.

    Args:
        recipe: what to do; its ``out`` receives the results.
        resume: continue from the last whole checkpoint in ``out``, or start there if there is none.
        force: replace a run that ``out`` holds.
        console: where progress goes; None keeps quiet.

    Returns:
        What was measured, also written to ``out/result.json``.

    Raises:
        BoneError: something about the recipe, the data, the base, a checkpoint or the disk.
        TrainingStopped: Ctrl-C; a checkpoint was saved.
    """
    from accelerate import PartialState

    recipe = recipe.checked()
    run = RunFolder(recipe.out)
    inputs = (recipe.base, recipe.data, recipe.eval_data, recipe.continue_from)
    with run.opened(resume=resume, force=force, inputs=inputs, first=PartialState().is_main_process):
        return _train(recipe, run, resume, console or Console(quiet=True))


def _train(recipe: Recipe, run: RunFolder, resume: bool, console: Console) -> TrainResult:
    from accelerate import PartialState

    checkpoint = None
    if resume:
        _check_same_recipe(recipe, run)
        checkpoint = run.last_checkpoint()

    state = PartialState()
    console.print(f"Loading {recipe.base} and {recipe.data}", markup=False)
    model, tokenizer = load_base(
        recipe.base,
        dtype=recipe.dtype,
        quantize=recipe.quantize,
        device=_own_device(state),
        trust_remote_code=recipe.trust_remote_code,
    )
    rows, held_out, removed = _load_rows(recipe, tokenizer)
    if removed:
        console.print(f"{removed} of {len(rows) + removed} training rows are held out for scoring: left out.")

    progress, stop = ProgressReport(console), StopOnInterrupt(console)
    trainer = _build_trainer(recipe, run, model, tokenizer, rows, held_out, [progress, stop, *_watching(recipe)])
    trainable, total = trainer.model.get_nb_trainable_parameters()
    console.print(f"{trainable:,} trainable parameters over {total - trainable:,} frozen ones.")

    state.wait_for_everyone()  # every process has seen the old state of `out`
    if state.is_main_process:
        run.begin()
        recipe.save(run.recipe)
    state.wait_for_everyone()

    publish = Publish(run)
    publish.attach(trainer)
    if checkpoint is not None:
        console.print(f"Continuing from {checkpoint}.")
    elif resume:
        console.print("No checkpoint to continue from; starting at step 0.")
    started = time.perf_counter()
    try:
        with stop.listening(), full_disk_is_explained(run.place):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.close()
    seconds = time.perf_counter() - started
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        raise TrainingStopped(
            f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, checkpoint saved; "
            f"continue with: bone train --resume --out {recipe.out}",
            stop.number,
        )

    result = TrainResult(
        adapter=str(run.place / run.adapter.name),
        trainable_parameters=trainable,
        base_parameters=total - trainable,
        steps=trainer.state.global_step,
        rows=len(rows),
        held_out_removed=removed,
        seconds=seconds,
        tokens_per_second=progress.tokens_per_second,
        peak_memory_bytes=peak_memory_bytes(),
        device=device_name(),
        history=[entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry],
        samples=[],
        samples_are_held_out=held_out is not None,
    )
    if state.is_main_process:
        _save_adapter(trainer, tokenizer, recipe, run)
    publish.publish()
    if state.is_main_process:
        _save(trainer, tokenizer, recipe, run, result, held_out if held_out is not None else rows)
    state.wait_for_everyone()
    return result


def _watching(recipe: Recipe) -> list[Any]:
    return [] if recipe.allow_unused else [UnusedAdapters()]


def _load_rows(recipe: Recipe, tokenizer: Any) -> tuple[Any, Any, int]:
    """Training rows, held-out rows (or None), and how many rows were taken out of the first for the second."""
    form: dict[str, Any] = {
        "tokenizer": tokenizer,
        "fields": recipe.fields,
        "chat": recipe.chat,
        "template": recipe.template,
    }
    rows = load_data(recipe.data, **form)
    if recipe.eval_data is None:
        return rows, None, 0
    held_out = load_data(recipe.eval_data, **form)
    kept = without(rows, held_out)
    if len(kept) == 0:
        raise BoneError(f"Every row of {recipe.data} is also in {recipe.eval_data}; nothing is left to learn from.")
    return kept, held_out, len(rows) - len(kept)


def _build_trainer(
    recipe: Recipe, run: RunFolder, model: Any, tokenizer: Any, rows: Any, held_out: Any, callbacks: list[Any]
) -> Any:
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from bone_peft.method import BoneConfig

    config = None
    try:
        if recipe.continue_from is None:
            config = BoneConfig(**{"task_type": "CAUSAL_LM", **recipe.adapter})
        else:
            model = load_adapter(model, recipe.continue_from, trainable=True)
        arguments = SFTConfig(
            output_dir=str(run.checkpoints),
            seed=recipe.seed,
            report_to="none",
            disable_tqdm=True,
            **recipe.training,
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=held_out if arguments.do_eval else None,
            processing_class=tokenizer,
            peft_config=config,
        )
    except BoneError:
        raise
    except (ValueError, TypeError) as error:
        raise BoneError(" ".join(str(error).split())) from error
    kept: Any = trainer.train_dataset
    if len(kept) == 0:
        raise BoneError(
            f"No row of {recipe.data} has an answer within {arguments.max_length} tokens; raise training.max_length."
        )
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def _save_adapter(trainer: Any, tokenizer: Any, recipe: Recipe, run: RunFolder) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    with whole_folder(run.adapter, ADAPTER, replace=True) as staging:
        for config in model.peft_config.values():
            config.base_model_name_or_path = recipe.base
        model.save_pretrained(str(staging))
        tokenizer.save_pretrained(str(staging))


def _save(trainer: Any, tokenizer: Any, recipe: Recipe, run: RunFolder, result: TrainResult, rows: Any) -> None:
    from ..evaluation import answer_samples
    from .report import write_report

    model = trainer.accelerator.unwrap_model(trainer.model)
    result.samples = answer_samples(model, tokenizer, rows)
    with whole_file(run.result) as file:
        file.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    write_report(run, recipe, result)


def _check_same_recipe(recipe: Recipe, run: RunFolder) -> None:
    if not run.recipe.is_file():
        return
    old, new = Recipe.load(run.recipe).checked().to_dict(), recipe.to_dict()
    changed = sorted(key for key in {*old, *new} - {"out"} if old.get(key) != new.get(key))
    if changed:
        raise BoneError(
            f"{run.recipe} differs from this recipe in {', '.join(changed)}, so the run would not be the same one; "
            f"leave them as they were, or start afresh in another --out."
        )


def _own_device(state: Any) -> Any:
    """Where this process's weights go: its own accelerator, or the CPU."""
    return state.device if state.device.type != "cpu" else "cpu"
