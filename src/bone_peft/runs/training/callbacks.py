"""What the Trainer tells us while it runs: progress for people, and where to stop when they ask."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback

from bone_peft.errors import BoneError
from bone_peft.io.hangup import let_go_of_the_terminal

from .held_out_loss import tenth


class ProgressReport(TrainerCallback):
    """Loss, tokens per second and time left: a live line on a terminal, ten plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.loss = float("nan")
        self.tokens = 0
        self.seconds = 0.0
        self._elsewhere = 0.0
        self._last_line = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens trained on (padding not counted) per second, in this process's share of the run."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()
        self._first_step = state.global_step
        self._last_line = state.global_step
        if self.console.is_interactive and state.is_world_process_zero:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}"),
                TextColumn("{task.fields[rate]:,.0f} tokens/s"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task(
                "training", total=state.max_steps, completed=state.global_step, loss=self.loss, rate=0.0
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self._started - self._elsewhere
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._elsewhere += (metrics or {}).get("eval_runtime", 0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self.loss = logs["loss"]
        self.tokens = logs.get("num_tokens", self.tokens)
        if not state.is_world_process_zero:
            return
        if self.bar is not None:
            self.bar.update(self.task, loss=self.loss, rate=self.tokens_per_second)
        elif state.global_step >= min(self._last_line + max(1, state.max_steps // 10), state.max_steps):
            self._last_line = state.global_step
            done = state.global_step - self._first_step
            spent = self.seconds + self._elsewhere
            left = (state.max_steps - state.global_step) * spent / max(1, done)
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  loss {self.loss:.4f}  "
                f"{self.tokens_per_second:,.0f} tokens/s  {left:.0f} s left",
                highlight=False,
            )

    def close(self) -> None:
        """Take the live line away, also after an error."""
        if self.bar is not None:
            self.bar.stop()


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C (or a scheduler's SIGTERM) ends the step, saves a checkpoint and stops; a second one stops at once.

    Where several processes train together, one that is asked tells the others, and all stop after the same step.

    Attributes:
        number: of the signal.
    """

    def __init__(self, console: Console, trainer: Any) -> None:
        self.console = console
        self.trainer = trainer
        self.number: int = signal.SIGINT
        self._before: dict[int, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.stops:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the block (main thread only; elsewhere they keep their meaning)."""
        old = self._before
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
                    old[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread
            pass
        try:
            yield
        finally:
            for caught, handler in old.items():
                signal.signal(caught, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            let_go_of_the_terminal()
        asked = self.trainer.is_asked_to_stop
        if asked and number == self.number:  # A launcher passes its own on, of another kind.
            before = self._before[number]
            if callable(before):
                before(number, frame)
            raise KeyboardInterrupt
        if asked:
            return
        self.trainer.is_asked_to_stop, self.number = True, number
        self.console.print("Stopping after this step and saving a checkpoint; once more to stop at once.")


class SaveByTenths(TrainerCallback):
    """A checkpoint at every tenth of the steps, and at every 500th: what a kill costs is bounded in short runs too."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.save_steps = tenth(state.max_steps)


class UnusedAdapters(TrainerCallback):
    """Stops the run before its first step if an adapter tensor got no gradient: nothing would be learned there."""

    def __init__(self) -> None:
        self.looked = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        # DeepSpeed keeps gradients where no parameter shows them.
        if self.looked or model is None or args.deepspeed_plugin is not None:
            return
        self.looked = True
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and ".bone_" in name}
        unused = {name.partition(".bone_")[0] for name, parameter in trained.items() if parameter.grad is None}
        layers = sorted(name.removeprefix("base_model.model.") for name in unused)
        if layers:
            raise BoneError(
                f"The adapters of {len(layers)} layers got no gradient at the first step, such as {layers[0]}: the "
                "model does not use them with these rows; name them in adapter.exclude_modules, or set allow_unused "
                "to true."
            )
