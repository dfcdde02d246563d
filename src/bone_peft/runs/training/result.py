"""What a run measured."""

from dataclasses import dataclass, field
from typing import Any


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
        seconds: wall time of the training loop.
        tokens_per_second: tokens trained on (no padding) per second.
        peak_memory_bytes: of the accelerator, else of this process.
        device: in words.
        history: the Trainer's log, one entry per logged step.
        samples: a few ``{"prompt", "expected", "answer"}`` after training.
        samples_are_held_out: whether the samples come from held-out rows.
    """

    adapter: str
    trainable_parameters: int
    base_parameters: int
    steps: int
    rows: int
    held_out_removed: int
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    device: str
    history: list[dict[str, Any]] = field(repr=False)
    samples: list[dict[str, str]] = field(repr=False)
    samples_are_held_out: bool = False
