"""One run of a study, in a process of its own: trained as ``bone train`` does it, then scored.

What is to be done comes as JSON; the last line of what is printed that is JSON, too, is the result.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from bone_peft.costs.measure import peak_memory_bytes
from bone_peft.errors import BoneError

from ..free_memory import NoRoomError, taking
from ..training import Recipe
from ..training.run_folder import RunFolder
from .compared import method
from .search import Trial
from .study import Study

_NEVER = 2**31 - 1
"""Steps."""


def recipe_of(study: Study, trial: Trial) -> Recipe:
    """The run as ``bone train`` has it, but for the adapter."""
    recipe, training = study.recipe, {"save_strategy": "no", "logging_steps": 10, **study.recipe.training}
    dtype = recipe.dtype
    if method(trial.method).trains_base and dtype != "float32":
        # What is trained is float32, and what is computed with it is not.
        dtype, training["bf16" if dtype == "bfloat16" else "fp16"] = "float32", True
    training["learning_rate"] = trial.rate
    return dataclasses.replace(recipe, seed=trial.seed, dtype=dtype, training=training)


def learn(study: Study, trial: Trial, size: int | None, share: int | None = None) -> dict[str, Any]:
    """Train and score.

    Args:
        share: bytes of a GPU by which answers are asked for at once; None goes by what is free.

    Returns:
        Measures by name, and ``curve``: steps and held-out losses.
    """
    from ..evaluation import score
    from ..training.train import prepare, take_steps

    recipe = recipe_of(study, trial).checked()
    with TemporaryDirectory() as nowhere:
        run = RunFolder(nowhere)
        trainer, tokenizer, held_out, result = prepare(recipe, run, _quiet(), adapt=_adapter(study, trial, size))
        take_steps(trainer, recipe, result, _quiet())
        model = trainer.plain_model
        with taking(share):
            found = score(
                model,
                tokenizer,
                held_out,
                batch_size=study.answer_batch,
                samples=3,
                answers=study.answers,
                answer_after=study.answer_after,
            )
    return {
        "loss": found.loss,
        "exact_match": found.exact_match,
        "final_answer": found.final_answer,
        "rows": found.rows,
        "answered": found.answered,
        "steps": result.steps,
        "seconds": result.seconds,
        "curve": [[entry["step"], entry["eval_loss"]] for entry in result.history if "eval_loss" in entry],
        "samples": found.samples,
        "device": result.device,
    }


def time_steps(study: Study, trial: Trial, size: int | None) -> dict[str, Any]:
    """The time of a step (median, milliseconds) and the peak of memory (bytes), in the first steps of a run.

    The first eighth of them is left out: the base is tried and steps are recorded there. ``run_bytes`` is the peak when
    the longest held-out rows were looked at too, as a run does on its way.
    """
    from ..training.train import prepare

    recipe = recipe_of(study, trial)
    looks = recipe.training.get("eval_strategy") not in ("no", False)
    training = {**recipe.training, "eval_on_start": False, "eval_strategy": "steps" if looks else "no"}
    if looks:
        training["eval_steps"] = _NEVER
    recipe = dataclasses.replace(recipe, training=training).checked()
    with TemporaryDirectory() as nowhere:
        trainer, _, _, result = prepare(recipe, RunFolder(nowhere), _quiet(), adapt=_adapter(study, trial, size))
        clock = _clock(study.timed_steps)
        trainer.add_callback(clock)
        trainer.train()
        if looks:
            trainer.evaluate(_longest(trainer.eval_dataset, trainer.args.per_device_eval_batch_size))
    times = clock.times[len(clock.times) // 8 :]
    return {
        "step_ms": 1e3 * median(times),
        "parameters": result.trainable_parameters,
        "peak_bytes": clock.peak_bytes,
        "run_bytes": peak_memory_bytes(),
        "device": result.device,
    }


def _longest(rows: Any, count: int) -> Any:
    """So many of tokenized rows."""
    lengths = list(map(len, rows["input_ids"]))
    return rows.select(sorted(range(len(lengths)), key=lengths.__getitem__)[-count:])


def _adapter(study: Study, trial: Trial, size: int | None) -> Callable[[Recipe], Any]:
    return lambda recipe: method(trial.method).config(size or study.r, study.targets)


def _clock(steps: int) -> Any:
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            self.times.append(time.perf_counter() - self.started)
            self.peak_bytes = peak_memory_bytes()
            control.should_training_stop = len(self.times) >= steps

    return Clock()


def _quiet() -> Console:
    return Console(quiet=True)


def _may_pass(error: BaseException) -> bool:
    """Whether it may be otherwise another time: memory, or what others said (the disk, the driver, the hub)."""
    if isinstance(error, NoRoomError):
        return True
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return cause is not None and (not isinstance(cause, BoneError) or _may_pass(cause))


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, even by a kill: nobody would take the result."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    spec = json.loads(sys.argv[1])
    study, trial = Study.of(spec["study"]), Trial(**spec["trial"])
    _end_with(spec["parent"])
    share = {"share": spec["share"]} if spec["what"] == "learn" else {}
    work = {"learn": learn, "time": time_steps}[spec["what"]]
    try:
        result = work(study, trial, spec["size"], **share)
    except BoneError as error:
        result = {"failed": str(error)} | ({"unfinished": True} if _may_pass(error) else {})
    sys.stdout.flush()
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
