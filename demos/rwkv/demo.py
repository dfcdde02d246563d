"""The whole road of an RWKV user, in minutes on two cores: ``make demo-rwkv``.

Trains a small RWKV-7 (or RWKV-6) from scratch, adapts it to a new task with Bone and with Bat, hands each adapter over
as a file of RWKV-PEFT, merges that into a ``.pth`` file, and runs it in the ``rwkv`` package.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from client import completion_loss, generate, logits, open_client
from datasets import disable_progress_bars
from pretrain import SMALL, WORLD_01B, pretrain
from rich.console import Console
from rich.table import Table

from bone_peft.cli.process import keep_freed_memory, quiet
from bone_peft.costs.measure import peak_memory_bytes
from bone_peft.files.bases import load_adapter, load_base
from bone_peft.files.conversion import convert
from bone_peft.files.merging import merge
from bone_peft.runs.data import load_data
from bone_peft.runs.evaluation import Subject, evaluate
from bone_peft.runs.evaluation.tokens import encode, expected_text
from bone_peft.runs.training import Recipe, train
from bone_peft.rwkv.tokenizer import vocabulary_of

ADAPTERS = {"Bone": {"r": 64}, "Bat": {"r": 64, "init_weights": "bat", "share": "input"}}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("runs/demo-rwkv"))
    options.add_argument("--version", choices=sorted(SMALL), default="x070", help="x060 is RWKV-6")
    options.add_argument("--full-size", action="store_true", help="x070's World 0.1B as to its size; takes 6 GB")
    given = options.parse_args()
    if given.full_size and given.version != "x070":
        options.error("--full-size is of x070.")
    begun = time.perf_counter()
    quiet()
    keep_freed_memory()
    disable_progress_bars()
    console = Console()

    console.rule("a base from scratch", align="left")
    size = WORLD_01B if given.full_size else SMALL[given.version]
    base, start, end = pretrain(given.out, size, console)
    console.print(f"Held-out text: {start:.3f} nats a token before, {end:.3f} after.", highlight=False)

    data, held_out = counting(given.out, size.held_out)
    columns = {}
    for name, adapter in ADAPTERS.items():
        console.rule(name, align="left")
        recipe = Recipe(
            base=str(base),
            data=str(data),
            eval_data=str(held_out),
            out=str(given.out / name.lower()),
            chat=False,
            dtype="float32",
            adapter=adapter,
            training={
                "max_steps": size.adapter_steps,
                "per_device_train_batch_size": size.batch_size,
                "learning_rate": 6e-3,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 2,
                "gradient_checkpointing": False,
                "save_strategy": "no",
                "eval_strategy": "no",  # it is scored before and after
                "logging_steps": max(size.adapter_steps // 10, 1),
            },
        )
        columns[name] = adapt(recipe, given.version, console)
    table = Table(f"on {size.held_out} held-out problems")
    for name in columns:
        table.add_column(name, justify="right")
    for row in columns["Bone"]:
        table.add_row(row, *(cells[row] for cells in columns.values()))
    console.print(table)
    console.print(f"Peak memory {peak_memory_bytes() / 2**30:.1f} GiB, {time.perf_counter() - begun:.0f} s in all.")


def counting(folder: Path, held_out: int) -> tuple[Path, Path]:
    """The new task, to count on from a number of three digits: files of rows to learn, and of rows held out."""
    starts = random.Random(0).sample(range(100, 990), 890)
    files = {"train.jsonl": starts[held_out:], "held-out.jsonl": starts[:held_out]}
    for name, numbers in files.items():
        rows = (
            {"prompt": f"Count on from {n}:", "completion": "".join(f" {n + i}" for i in range(1, 6))} for n in numbers
        )
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "train.jsonl", folder / "held-out.jsonl"


def adapt(recipe: Recipe, version: str, console: Console) -> dict[str, str]:
    """One adapter from training to the client; the cells of its column."""
    base, out = Path(recipe.base), Path(recipe.out)
    result = train(recipe, force=True, console=console)
    scores = evaluate(
        {"before": Subject(recipe.base), "after": Subject(recipe.base, result.adapter)},
        lambda tokenizer: load_data(str(recipe.eval_data), tokenizer=tokenizer, chat=False),
        dtype="float32",
    )
    theirs, merged = (out.with_name(f"{out.name}-{what}.pth") for what in ("rwkv-peft", "merged"))
    convert(result.adapter, "rwkv", theirs, force=True)
    merge(recipe.base, theirs, merged, force=True)

    client, client_tokenizer = open_client(merged, vocabulary_of(base), version)
    model, tokenizer = load_base(recipe.base, dtype="float32")
    model = load_adapter(model, result.adapter)
    rows = load_data(str(recipe.eval_data), tokenizer=tokenizer, chat=False)
    tokens = [encode(row, tokenizer) for row in rows]
    answers = [generate(client, client_tokenizer, row["prompt"]) for row in rows]
    console.print(f"In rwkv: {rows[0]['prompt']} {answers[0]}", highlight=False)
    error = max(_difference(model, client, prompt + completion) for prompt, completion in tokens)
    right = sum(answer == expected_text(row["completion"]) for answer, row in zip(answers, rows, strict=True))
    return {
        "loss (nats a token), base": f"{scores['before'].loss:.4f}",
        "loss, adapted": f"{scores['after'].loss:.4f}",
        "loss, merged, in the rwkv package": f"{completion_loss(client, tokens):.4f}",
        "exact match, base": f"{scores['before'].exact_match:.0%}",
        "exact match, adapted": f"{scores['after'].exact_match:.0%}",
        "exact match, merged, in the rwkv package": f"{right / len(rows):.0%}",
        "largest difference of logits, over the largest logit": f"{error:.0e}",
        "trainable parameters": f"{result.trainable_parameters:,}",
        "training seconds": f"{result.seconds:.0f}",
    }


@torch.no_grad()
def _difference(model, client, ids: list[int]) -> float:
    """Between our logits and the client's, at all tokens."""
    ours = model(input_ids=torch.tensor([ids])).logits[0]
    return float((logits(client, ids) - ours).abs().max() / ours.abs().max())


if __name__ == "__main__":
    main()
