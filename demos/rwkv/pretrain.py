"""An RWKV-7 or RWKV-6 from scratch, on the text of Python's own manual, which comes with Python."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from bone_peft.runs.training.callbacks import ProgressReport
from bone_peft.rwkv.fresh import fresh_model as fresh_x070
from bone_peft.rwkv.fresh_x060 import fresh_model as fresh_x060
from bone_peft.rwkv.pth_model import save_model
from bone_peft.rwkv.tokenizer import VOCABULARY, load_tokenizer, world_vocabulary


@dataclass(frozen=True)
class Size:
    """An architecture, and how long to train it: ``steps`` from scratch, ``adapter_steps`` on the new task.

    ``fresh_model`` makes it, of RWKV-7 or RWKV-6.
    ``rows`` of the embedding; fewer than World has tokens means those of one and two bytes, in a vocabulary of its own.
    """

    fresh_model: Callable[..., Any]
    hidden_size: int
    layers: int
    rows: int
    steps: int
    adapter_steps: int
    batch_size: int
    held_out: int
    low_rank: dict[str, int] = field(default_factory=dict)


_small = partial(Size, hidden_size=256, layers=4, rows=3328, batch_size=16, held_out=64)
SMALL = {
    "x070": _small(
        fresh_x070,
        steps=200,
        adapter_steps=240,
        low_rank={"decay_low_rank_dim": 32, "a_low_rank_dim": 32, "gate_low_rank_dim": 64},
    ),
    "x060": _small(
        fresh_x060, steps=250, adapter_steps=300, low_rank={"decay_low_rank_dim": 32, "mix_low_rank_dim": 16}
    ),
}
WORLD_01B = Size(fresh_x070, 768, 12, 65536, 40, 40, 4, 8)
"""The architecture of RWKV-7 World 0.1B: far too large to learn much in minutes on a CPU."""


def pretrain(folder: Path, size: Size, console: Console, *, context: int = 64) -> tuple[Path, float, float]:
    """Write ``base.pth``, and its vocabulary beside it if that is its own.

    Returns:
        The file, and the loss (nats a token) on text that it was not trained on: at the start, and at the end.
    """
    from pydoc_data.topics import topics

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base.pth"
    lines = world_vocabulary().read_text(encoding="utf-8").splitlines(keepends=True)
    if size.rows < len(lines):
        short = (line for line in lines if int(line.rsplit(" ", 1)[1]) <= 2)
        (folder / VOCABULARY).write_text("".join(short), encoding="utf-8")

    ids = torch.tensor(load_tokenizer(base, size.rows)("\n\n".join(topics.values()))["input_ids"])
    windows = [{"input_ids": window, "labels": window} for window in ids.split(context) if len(window) == context]
    held_out = windows[::20][: 2 * size.held_out]
    text = [window for index, window in enumerate(windows) if index % 20]

    model = size.fresh_model(size.hidden_size, size.layers, size.rows, **size.low_rank)
    arguments = TrainingArguments(
        output_dir=str(folder / "pretraining"),
        max_steps=size.steps,
        per_device_train_batch_size=size.batch_size,
        per_device_eval_batch_size=size.batch_size,
        prediction_loss_only=True,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=size.steps // 10,
        weight_decay=0.1,
        adam_beta2=0.99,
        logging_steps=max(size.steps // 10, 1),
        include_num_input_tokens_seen="all",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=text, eval_dataset=held_out)
    trainer.remove_callback(PrinterCallback)
    progress = _Progress(console)
    trainer.add_callback(progress)
    before = trainer.evaluate()["eval_loss"]
    try:
        trainer.train()
    finally:
        progress.close()
    after = trainer.evaluate()["eval_loss"]
    save_model(model, base)
    return base, before, after


class _Progress(ProgressReport):
    """Counts tokens where the plain Trainer does."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, {**(logs or {}), "num_tokens": state.num_input_tokens_seen}, **kwargs)
