"""What a run measured, and its file."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bone_peft.io.json_text import json_text
from bone_peft.io.whole import whole_file


@dataclass
class TrainResult:
    """What a run measured. Rates and seconds count this process's own part of a resumed run.

    Attributes:
        adapter: folder of the adapter.
        trainable_parameters: how many numbers were trained.
        base_parameters: how many the frozen base has.
        steps: optimizer steps of the whole run.
        rows: training rows, after held-out rows were taken out.
        held_out_removed: rows taken out of the training data because they are scored.
        rows_cut: how many of ``rows`` are longer than ``max_length``.
        rows_unanswered: how many of ``rows`` have no answer left to learn, all of it being cut away.
        seconds: wall time of the training loop.
        tokens_per_second: tokens trained on (no padding) per second.
        peak_memory_bytes: of the accelerator, else of this process.
        device: in words.
        kept_step: whose adapter is left; None for the last one's.
        history: the Trainer's log, one entry per logged step.
        samples: a few ``{"prompt", "expected", "answer", "base"}`` after training; the last without the adapter.
        samples_are_held_out: whether the samples come from held-out rows.
        recipe: what was run, without where its results went.
    """

    adapter: str
    trainable_parameters: int
    base_parameters: int
    rows: int
    held_out_removed: int
    device: str
    steps: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    peak_memory_bytes: int = 0
    kept_step: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    samples: list[dict[str, str]] = field(default_factory=list, repr=False)
    samples_are_held_out: bool = False
    rows_cut: int = 0
    rows_unanswered: int = 0
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        with whole_file(path) as file:
            file.write_text(json_text(asdict(self)), encoding="utf-8")

    @classmethod
    def of_recipe(cls, path: Path, recipe: dict[str, Any]) -> "TrainResult | None":
        """The result in the file at ``path``, if there is one and it is of this ``recipe``."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or found.keys() != {field.name for field in fields(cls)}:
            return None
        return cls(**found) if found["recipe"] == recipe else None
