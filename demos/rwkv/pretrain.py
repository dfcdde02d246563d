"""A small RWKV-7 from scratch, on the text of Python's own manual, which comes with Python."""

from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from bone_peft.rwkv.checkpoint import save_model
from bone_peft.rwkv.fresh import fresh_model
from bone_peft.rwkv.tokenizer import VOCABULARY, load_tokenizer, world_vocabulary

ROWS = 3328
"""Of the embedding: the World vocabulary's tokens of one and two bytes, so that the model stays small."""


def pretrain(folder: Path, *, steps: int, batch_size: int = 16, context: int = 64) -> tuple[Path, float, float]:
    """Write ``base.pth``, and its vocabulary beside it.

    Returns:
        The file, and the loss (nats a token) on text that it was not trained on: at the start, and at the end.
    """
    from pydoc_data.topics import topics

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base.pth"
    lines = world_vocabulary().read_text(encoding="utf-8").splitlines(keepends=True)
    short = (line for line in lines if int(line.split(" ")[0]) < ROWS and int(line.rsplit(" ", 1)[1]) <= 2)
    (folder / VOCABULARY).write_text("".join(short), encoding="utf-8")

    ids = torch.tensor(load_tokenizer(base, ROWS)("\n\n".join(topics.values()))["input_ids"])
    windows = [{"input_ids": window, "labels": window} for window in ids.split(context) if len(window) == context]
    held_out, text = windows[::20], [window for index, window in enumerate(windows) if index % 20]

    model = fresh_model(256, 4, ROWS, decay_low_rank_dim=32, a_low_rank_dim=32, gate_low_rank_dim=64)
    arguments = TrainingArguments(
        output_dir=str(folder / "pretraining"),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        weight_decay=0.1,
        adam_beta2=0.99,
        logging_steps=25,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=text, eval_dataset=held_out)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    save_model(model, base)
    return base, before, after
