"""The loss on held-out rows while a run goes on: which rows, when, what is said of it, and what follows from it."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rich.console import Console
from transformers import EarlyStoppingCallback, TrainerCallback

from bone_peft.errors import BoneError

MOST = 200
"""Rows that the loss is taken over. More cost time at every tenth of a run, and move it little."""


def settings_of(given: dict[str, Any], held_out: bool, keeps_best: bool) -> dict[str, Any]:
    """What the Trainer is told, beside what a recipe tells it itself.

    Args:
        given: the recipe's ``training``.
        held_out: whether there are held-out rows.
        keeps_best: whether a run leaves the adapter that did best on them: it is saved whenever it is looked at.

    Raises:
        BoneError: the best is asked for, and there is nothing to judge by, or looks and checkpoints are apart.
    """
    settings: dict[str, Any] = {}
    if held_out and not {"eval_strategy", "do_eval"} & given.keys():
        settings["eval_strategy"] = given.get("save_strategy", "steps") if keeps_best else "steps"
    if not keeps_best:
        return settings
    if not held_out:
        raise BoneError(
            "keep: best and early_stopping go by held-out rows: give eval_data (--eval-data) or eval_split "
            "(--eval-split)."
        )
    told = given | settings
    for kind, name in (("strategy", "eval_strategy"), ("steps", "eval_steps")):
        save = f"save_{kind}"
        value = told.get(name, told.get(save))
        if value is None:
            continue
        if told.get(save, value) != value or value in ("no", False, "best"):
            raise BoneError(
                f"keep: best and early_stopping save whenever they look: leave training.{save} and training.{name} "
                "out, or give both the same."
            )
        settings |= {save: value, name: value}
    return settings


def has_ended(history: list[dict[str, Any]], early_stopping: int | None) -> bool:
    """Whether a run with these losses on held-out rows was at its early end."""
    return early_stopping is not None and _looks_without_better(history) >= early_stopping


def _looks_without_better(history: list[dict[str, Any]]) -> int:
    best, looks = math.inf, 0
    for entry in history:
        if "eval_loss" in entry and entry["step"] > 0:  # what a run begins with is not what it leaves
            best, looks = (entry["eval_loss"], 0) if entry["eval_loss"] < best else (best, looks + 1)
    return looks


def goes_by_tenths(training: dict[str, Any]) -> bool:
    """Whether the run says when the loss is taken: nobody else has."""
    return training.get("eval_strategy", "no") == "steps" and "eval_steps" not in training


def tenth(steps: int) -> int:
    """Steps from one look, or checkpoint, to the next: a tenth of all, 500 at most."""
    return min(500, math.ceil(steps / 10))


class HeldOutByTenths(TrainerCallback):
    """The loss is taken at every tenth of the steps; the Trainer takes it after the last one too."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.eval_steps = tenth(state.max_steps)


class HeldOutReport(TrainerCallback):
    """Says each loss on held-out rows, and what it began with.

    Args:
        measures: what is measured beside it, by key, and how it is told.
    """

    def __init__(self, console: Console, measures: Mapping[str, str] = MappingProxyType({})) -> None:
        self.console = console
        self.measures = measures

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or "eval_loss" not in (metrics or {}):
            return
        loss = metrics["eval_loss"]
        before = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        told = (f"  {words.format(metrics[key])}" for key, words in self.measures.items() if key in metrics)
        more = "".join(told)
        first = f" ({before[0]:.4f} at first)" if len(before) > 1 else ""
        self.console.print(
            f"step {state.global_step}/{state.max_steps}  held-out loss {loss:.4f}{first}{more}", highlight=False
        )


class StopEarly(EarlyStoppingCallback):
    """Transformers' own, which says when it stops a run."""

    def __init__(self, patience: int, console: Console) -> None:
        super().__init__(patience)
        self.console = console

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = _looks_without_better(state.log_history)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        super().on_evaluate(args, state, control, metrics, **kwargs)
        looks = self.early_stopping_patience
        if self.early_stopping_patience_counter >= looks and state.is_world_process_zero:
            self.console.print(
                f"The held-out loss was not better in {looks} looks: the run ends here, as early_stopping asks."
            )
