"""``train``: one run from recipe to adapter, read top to bottom."""

import signal
import time
from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from bone_peft.costs.measure import device_name, peak_memory_bytes
from bone_peft.errors import BoneError, explains_missing_extras
from bone_peft.files.bases import load_adapter, load_base, set_template, take_template
from bone_peft.io.names import brief
from bone_peft.io.whole import full_disk_is_explained

from ..data import document_start, load_data, sources_in, split, without, written
from . import preview
from .callbacks import ProgressReport, SaveByTenths, StopOnInterrupt, UnusedAdapters
from .finish import complete, is_complete, save_adapter
from .held_out_loss import MOST, HeldOutByTenths, HeldOutReport, StopEarly, goes_by_tenths, has_ended
from .logs import callbacks_of
from .lost_process import ending, is_of_another
from .methods import training_method
from .publishing import Publish
from .pushing import make_place, push
from .recipe import Recipe
from .result import TrainResult
from .run_folder import RunFolder
from .saved_state import SavedState, losses_of
from .settings import adapter_config, arguments_of, cannot_train, may_checkpoint


class TrainingStopped(KeyboardInterrupt):
    """The user stopped the run; the message says where it stands and how to continue.

    Attributes:
        number: of the signal that it was stopped by.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


@explains_missing_extras
def dry_run(recipe: Recipe, *, console: Console) -> None:
    """Show what a run would learn from and take: rows with what is learned of them, lengths, memory, time.

    Nothing is learned, written or replaced. In one process.

    Raises:
        BoneError: as :func:`train`.
    """
    recipe = recipe.checked()
    with TemporaryDirectory() as nowhere:
        trainer, tokenizer, _, _ = prepare(recipe, RunFolder(nowhere), console)
        if trainer.args.world_size > 1:
            raise BoneError("--dry-run looks at a run from one process: leave out what starts several.")
        preview.show(trainer, tokenizer, console)


@explains_missing_extras
def train(recipe: Recipe, *, resume: bool = False, force: bool = False, console: Console | None = None) -> TrainResult:
    """Run ``recipe``: load, train, save the adapter, write the report. Every process of a distributed run calls it.

    Args:
        recipe: what to do; its ``out`` receives the results.
        resume: continue from the last whole checkpoint in ``out``, or start there if there is none; of a finished run
            only what is missing is made.
        force: replace a run that ``out`` holds.
        console: where progress goes; None keeps quiet.

    Returns:
        What was measured, also written to ``out/result.json``.

    Raises:
        BoneError: something about the recipe, the data, the base, a checkpoint or the disk; or a loss or gradient was
            NaN or infinite.
        TrainingStopped: Ctrl-C; a checkpoint was saved.
    """
    recipe = recipe.checked()
    run = RunFolder(recipe.out)
    data = (source for given in (recipe.data, recipe.eval_data) if given is not None for source in sources_in(given))
    inputs = (recipe.base, recipe.continue_from, *data)
    with run.opened(resume=resume, force=force, inputs=inputs, first=_rank() == 0):
        return _train(recipe, run, resume, console or Console(quiet=True))


def _train(recipe: Recipe, run: RunFolder, resume: bool, console: Console) -> TrainResult:
    from accelerate import PartialState

    saved, result = _so_far(recipe, run) if resume else (None, None)
    if result is not None and is_complete(result, run):
        console.print(f"The run in {run.root} is finished ({result.steps} steps); nothing is left to do.", markup=False)
        return result
    trainer, tokenizer, questions, fresh = prepare(recipe, run, console, saved if result is None else None)

    state = PartialState()
    if recipe.push_to_hub is not None and state.is_main_process:
        make_place(recipe.push_to_hub)
    state.wait_for_everyone()  # every process has seen the old state of `out`
    if state.is_main_process:
        run.begin()
        recipe.save(run.recipe)
    state.wait_for_everyone()

    publish = Publish(run)
    if result is None:
        result = fresh
        if saved is not None and _is_at_its_end(saved, recipe):
            console.print(f"All steps are done; the adapter is taken from {saved.folder}.", markup=False)
            trainer.restore(saved.best or saved.folder)
            result.steps, result.history = saved.step, saved.history
            result.kept_step = None if saved.best is None else int(saved.best.rpartition("-")[2])
        else:
            if resume:
                console.print(f"Continuing from {saved.folder if saved else 'step 0, no checkpoint'}.", markup=False)
            publish.attach(trainer)
            take_steps(trainer, recipe, result, console, saved)
        trainer.check_weights()
        save_adapter(trainer.plain_model, tokenizer, recipe, run, result)
        if state.is_main_process:
            result.save(run.result)
        publish.publish()
        if state.is_main_process:
            console.print("The adapter is saved; sample answers and the report follow.")
    else:
        console.print("All steps are done and the adapter is saved; sample answers and the report follow.")
        trainer.restore(run.adapter)
    try:
        complete(trainer.plain_model, tokenizer, questions, recipe, run, result, console)
    except KeyboardInterrupt as stop:
        raise TrainingStopped(
            f"Stopped after training; {run.adapter} is whole. For sample answers and the report: "
            f"bone train --resume --out {recipe.out}",
            getattr(stop, "number", signal.SIGINT),
        ) from None
    if recipe.push_to_hub is not None and state.is_main_process:
        console.print(f"The adapter is at {push(run.adapter, recipe.push_to_hub)}.", markup=False)
    state.wait_for_everyone()
    return result


def _rank() -> int:
    """Of this process. Accelerate's state knows it only once the training arguments have said which devices to use."""
    from accelerate.utils import get_int_from_env

    return get_int_from_env(("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"), 0)


def _so_far(recipe: Recipe, run: RunFolder) -> tuple[SavedState | None, TrainResult | None]:
    """The last checkpoint if there is one, and the result if the last step was taken and its adapter saved."""
    _check_same_recipe(recipe, run)
    checkpoint = run.last_checkpoint()
    saved = SavedState.of(checkpoint) if checkpoint is not None else None
    has_adapter = (run.adapter / "adapter_model.safetensors").is_file()
    result = TrainResult.of_recipe(run.result, _content(recipe)) if has_adapter else None
    if saved is not None and not _is_at_its_end(saved, recipe):
        return saved, None
    return saved, result


def _is_at_its_end(saved: SavedState, recipe: Recipe) -> bool:
    return saved.is_last or has_ended(saved.history, recipe.early_stopping)


def _keep_rows_a_step(arguments: Any, saved: SavedState) -> None:
    """Have a run go on with as many rows a step as it had, by however many processes."""
    before, now, batches = saved.processes, arguments.world_size, arguments.gradient_accumulation_steps
    if before * batches % now:
        raise BoneError(
            f"{saved.folder} was written with {before} x {batches} batches a step, which {now} processes cannot share "
            f"evenly: continue with --devices {before}."
        )
    arguments.gradient_accumulation_steps = before * batches // now


def prepare(
    recipe: Recipe,
    run: RunFolder,
    console: Console,
    saved: SavedState | None = None,
    adapt: Callable[[Recipe], Any] = lambda recipe: adapter_config(recipe.adapter),
) -> tuple[Any, Any, Any, TrainResult]:
    """Trainer, tokenizer, the rows to answer in the end, and a result that knows everything but the training.

    Args:
        recipe: checked.
        saved: the checkpoint that the run goes on from.
        adapt: the config of the adapter, any of PEFT's; None trains the base itself.
    """
    best = {"load_best_model_at_end": True} if recipe.keeps_best else {}
    arguments = arguments_of(
        recipe.training | best, recipe.seed, run.checkpoints, recipe.tensor_parallel, recipe.method
    )
    if saved is not None and not recipe.tensor_parallel:
        _keep_rows_a_step(arguments, saved)
    console.print(f"Loading {recipe.base} and {written(recipe.data)}", markup=False)
    # A process's weights go to its own accelerator, or stay on the CPU.
    device = arguments.device if arguments.device.type != "cpu" else "cpu"
    model, tokenizer = load_base(
        recipe.base,
        dtype=recipe.dtype,
        quantize=recipe.quantize,
        device=device,
        trust_remote_code=recipe.trust_remote_code,
        parts=arguments.world_size if recipe.tensor_parallel else 1,
    )
    take_template(tokenizer, recipe.continue_from)
    if recipe.chat_template is not None:
        set_template(tokenizer, recipe.chat_template)
    rows, held_out, removed = _load_rows(recipe, tokenizer)
    if removed:
        console.print(f"{removed} of {len(rows) + removed} training rows are held out for scoring: left out.")
    trainer = _build_trainer(recipe, arguments, model, tokenizer, rows, held_out, console, adapt)
    for kind, cut in trainer.cut.items():
        for sentence in cut.in_words("training" if kind == "train" else "held-out"):
            console.print(sentence)
    trainable, total = trainer.count_parameters()
    console.print(f"{trainable:,} trainable parameters over {total - trainable:,} frozen ones.")
    console.print(preview.settings_of(trainer), highlight=False)
    console.print(str(preview.Extent.of(trainer, 1 if recipe.tensor_parallel else arguments.world_size)))
    result = TrainResult(
        adapter=str(run.place / run.adapter.name),
        trainable_parameters=trainable,
        base_parameters=total - trainable,
        rows=len(rows),
        held_out_removed=removed,
        rows_cut=trainer.cut["train"].cut,
        rows_unanswered=trainer.cut["train"].unanswered,
        samples_are_held_out=held_out is not None,
        device=device_name(),
        recipe=_content(recipe),
    )
    return trainer, tokenizer, training_method(recipe.method).questions(rows if held_out is None else held_out), result


def take_steps(
    trainer: Any, recipe: Recipe, result: TrainResult, console: Console, saved: SavedState | None = None
) -> None:
    """Train to the last step, and note in ``result`` what was measured."""
    from torch import OutOfMemoryError

    progress, stop = ProgressReport(console), StopOnInterrupt(console, trainer)
    for callback in (progress, stop, *_watching(recipe, console)):
        trainer.add_callback(callback)
    if goes_by_tenths(recipe.training) and saved is None:
        trainer.args.eval_on_start = True
    started = time.perf_counter()
    try:
        with stop.listening(), ending(trainer.without_another), full_disk_is_explained(recipe.out):
            trainer.train(resume_from_checkpoint=str(saved.folder) if saved else None)
    except (BoneError, MemoryError, OutOfMemoryError):
        raise
    except Exception as error:
        if trainer.args.world_size > 1 and is_of_another(error):
            raise BoneError(trainer.without_another(brief(error))) from error
        # Another process has heard of it by now, and what it is told is that this one has gone.
        if trainer.args.world_size > 1 or trainer.state.global_step > (saved.step if saved else 0):
            raise
        raise cannot_train(error) from error  # some settings are only looked at when they are used
    finally:
        progress.close()
    state = trainer.state
    if trainer.stops and state.global_step < state.max_steps:
        raise TrainingStopped(
            f"Stopped at step {state.global_step} of {state.max_steps}, checkpoint saved; "
            f"continue with: bone train --resume --out {recipe.out}",
            stop.number,
        )
    result.steps, result.history = state.global_step, losses_of(state.log_history)
    result.seconds = time.perf_counter() - started
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        result.kept_step = int(state.best_model_checkpoint.rpartition("-")[2])
        console.print(f"The adapter of step {result.kept_step} is kept, the best on held-out rows.", highlight=False)
    result.tokens_per_second = progress.tokens_per_second
    result.peak_memory_bytes = peak_memory_bytes()


def _content(recipe: Recipe) -> dict[str, Any]:
    """What makes a run this one, wherever its results go."""
    return {key: value for key, value in recipe.to_dict().items() if key != "out"}


def _watching(recipe: Recipe, console: Console) -> list[Any]:
    watching: list[Any] = [] if recipe.allow_unused else [UnusedAdapters()]
    by_tenths = goes_by_tenths(recipe.training)
    own_times = "save_steps" in recipe.training or recipe.training.get("save_strategy", "steps") != "steps"
    if not own_times and (by_tenths or not recipe.training.get("load_best_model_at_end")):
        watching.append(SaveByTenths())
    if by_tenths:
        watching.append(HeldOutByTenths())
    if recipe.early_stopping is not None:
        watching.append(StopEarly(recipe.early_stopping, console))
    return [*watching, HeldOutReport(console, training_method(recipe.method).measures)]


def _load_rows(recipe: Recipe, tokenizer: Any) -> tuple[Any, Any, int]:
    """Training rows, held-out rows (or None), and how many rows were taken out of the first for the second."""
    form: dict[str, Any] = {
        "tokenizer": tokenizer,
        "fields": recipe.fields,
        "chat": recipe.chat,
        "template": recipe.template,
        "pairs": training_method(recipe.method).pairs,
    }
    rows = load_data(recipe.data, **form)
    if recipe.eval_data is None and not recipe.eval_split:
        return rows, None, 0
    if recipe.eval_data is None:
        kept, held_out = split(rows, recipe.seed, document_start(tokenizer))
        return kept, held_out, len(rows) - len(kept)
    held_out = load_data(recipe.eval_data, **form)
    kept = without(rows, held_out, document_start(tokenizer))
    if len(kept) == 0:
        named = f"{written(recipe.data)} is also in {written(recipe.eval_data)}"
        raise BoneError(f"Every row of {named}; nothing is left to learn from.")
    return kept, held_out, len(rows) - len(kept)


def _build_trainer(
    recipe: Recipe,
    arguments: Any,
    model: Any,
    tokenizer: Any,
    rows: Any,
    held_out: Any,
    console: Console,
    adapt: Callable[[Recipe], Any],
) -> Any:
    from torch import OutOfMemoryError
    from transformers.trainer_callback import PrinterCallback

    method, config = training_method(recipe.method), None
    try:
        if recipe.continue_from is None:
            config = adapt(recipe)
        else:
            model = load_adapter(model, recipe.continue_from, trainable=True)
        kind: Any = method.trainer()
        trainer = kind(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=_judged_by(held_out, recipe) if arguments.do_eval else None,
            processing_class=tokenizer,
            peft_config=config,
            may_checkpoint=may_checkpoint(recipe.training, recipe.tensor_parallel),
            say=partial(console.print, markup=False),
            **method.options(recipe),
        )
        cut = trainer.cut["train"]
        if cut.unanswered == cut.rows:
            raise BoneError(
                f"No row of {written(recipe.data)} has an answer within {arguments.max_length} tokens; "
                "raise training.max_length."
            )
        judged = trainer.cut.get("eval")
        if judged is not None and judged.unanswered == judged.rows:
            raise BoneError(
                f"No held-out row that the loss is taken over has an answer within {arguments.max_length} tokens; "
                "raise training.max_length, or give other rows."
            )
        if recipe.keeps_best and trainer.is_sharded:
            raise BoneError(
                "keep: best and early_stopping want the whole model in each process: take --strategy ddp, or keep the "
                "last."
            )
        trainer.try_settings()
        if trainer.planned_steps * arguments.warmup_steps < 1:
            arguments.warmup_steps = 0  # Transformers would make a step of it, one at a learning rate of 0
    except (BoneError, MemoryError, OutOfMemoryError):
        raise
    except Exception as error:  # here the settings meet the libraries, and each has its own way to refuse them
        raise cannot_train(error) from error
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks_of(recipe.log):
        trainer.add_callback(callback)
    return trainer


def _judged_by(held_out: Any, recipe: Recipe) -> Any:
    """The held-out rows that the loss is taken over while the run goes on."""
    if goes_by_tenths(recipe.training) and len(held_out) > MOST:
        return held_out.select(range(MOST))
    return held_out


def _check_same_recipe(recipe: Recipe, run: RunFolder) -> None:
    if not run.recipe.is_file():
        return
    old, new = _content(Recipe.load(run.recipe)), _content(recipe)  # what a run writes is whole: nothing is filled in
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if changed:
        raise BoneError(
            f"{run.recipe} differs from this recipe in {', '.join(changed)}, so the run would not be the same one; "
            f"leave them as they were, or start afresh in another --out."
        )
