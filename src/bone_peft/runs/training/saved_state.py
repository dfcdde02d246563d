"""How far a checkpoint is, from the file that the Trainer writes last."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError


@dataclass(frozen=True)
class SavedState:
    """``step`` of ``steps`` are done, and ``history`` was logged; ``best`` is the checkpoint kept as the best."""

    folder: Path
    step: int
    steps: int
    history: list[dict[str, Any]]
    best: str | None

    @classmethod
    def of(cls, checkpoint: Path) -> "SavedState":
        """Read it.

        Raises:
            BoneError: the file does not say what a Trainer's does.
        """
        file = checkpoint / "trainer_state.json"
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            step, steps, history = state["global_step"], state["max_steps"], state["log_history"]
            sound = 0 < step <= steps and all(isinstance(entry, dict) for entry in history)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            sound = False
        if not sound:
            raise BoneError(f"{file} is damaged; delete {checkpoint} to continue from the one before it.")
        best = state.get("best_model_checkpoint")
        if best is not None:  # where it lies now, if the run was moved
            best = str(checkpoint.parent / str(best).replace("\\", "/").rpartition("/")[2])
        return cls(checkpoint, step, steps, losses_of(history), best)

    @property
    def processes(self) -> int:
        """How many wrote it: each has its own state of random numbers."""
        return max(len(list(self.folder.glob("rng_state_*.pth"))), 1)

    @property
    def is_last(self) -> bool:
        """True when no step is left."""
        return self.step >= self.steps


def losses_of(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of the Trainer's log that hold a loss."""
    return [entry for entry in log if "loss" in entry or "eval_loss" in entry]
