"""The loss on held-out rows while a run goes on: which rows, when, what is said of it, and what follows from it."""

import math
from typing import Any

from rich.console import Console
from transformers import EarlyStoppingCallback, TrainerCallback

from bone_peft.errors import BoneError

MOST = 200
"""Rows that the loss is taken over. More cost time at every tenth of a run, and move it little."""
_LEAST, _SHARE = 10, 50


def settings_of(given: dict[str, Any], held_out: bool, keep: str, early_stopping: int | None) -> dict[str, Any]:
    """What the Trainer is told, beside what a recipe tells it itself.

    Args:
        given: the recipe's ``training``.
        held_out: whether there are held-out rows.
        keep: ``"last"`` or ``"best"``, the adapter that a run leaves.
        early_stopping: how many looks without a better loss end the run; None for no end before the last step.

    Raises:
        BoneError: the best is asked for, and there is nothing to judge by.
    """
    settings: dict[str, Any] = {}
    if held_out and not {"eval_strategy", "do_eval"} & given.keys():
        settings["eval_strategy"] = "steps"
    if keep == "best" or early_stopping is not None:
        if not held_out:
            asked = "early_stopping" if early_stopping is not None else "keep: best"
            raise BoneError(
                f"{asked} goes by held-out rows: give eval_data (--eval-data), or eval_split (--eval-split)."
            )
        settings["load_best_model_at_end"] = True
    return settings


def goes_by_tenths(training: dict[str, Any]) -> bool:
    """Whether the run says when the loss is taken: nobody else has."""
    return training.get("eval_strategy", "no") == "steps" and "eval_steps" not in training


def tenth(steps: int) -> int:
    """Steps from one look, or checkpoint, to the next: a tenth of all, 500 at most."""
    return min(500, math.ceil(steps / 10))


def split(rows: Any, seed: int) -> tuple[Any, Any]:
    """Rows to learn from, and a fiftieth of them to judge by (10 to 200), chosen at random.

    Raises:
        BoneError: there are too few to split.
    """
    count = min(max(len(rows) // _SHARE, _LEAST), MOST)
    if len(rows) < 2 * count:
        raise BoneError(
            f"{len(rows)} rows are too few to hold {count} of them out: give more, or held-out rows by --eval-data."
        )
    parts = rows.train_test_split(test_size=count, seed=seed)
    return parts["train"], parts["test"]


class HeldOutByTenths(TrainerCallback):
    """The loss is taken at every tenth of the steps; the Trainer takes it after the last one too."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.eval_steps = tenth(state.max_steps)


class HeldOutReport(TrainerCallback):
    """Says each loss on held-out rows, and what it began with."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or "eval_loss" not in (metrics or {}):
            return
        loss = metrics["eval_loss"]
        before = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        first = f" ({before[0]:.4f} at first)" if len(before) > 1 else ""
        self.console.print(
            f"step {state.global_step}/{state.max_steps}  held-out loss {loss:.4f}{first}", highlight=False
        )


class StopEarly(EarlyStoppingCallback):
    """Transformers' own, which says when it stops a run."""

    def __init__(self, patience: int, console: Console) -> None:
        super().__init__(patience)
        self.console = console

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        super().on_evaluate(args, state, control, metrics, **kwargs)
        looks = self.early_stopping_patience
        if self.early_stopping_patience_counter >= looks and state.is_world_process_zero:
            self.console.print(
                f"The held-out loss was not better in {looks} looks: the run ends here, as early_stopping asks."
            )
