"""The whole road of an RWKV user, in minutes on two cores: ``make demo-rwkv``.

Trains a small RWKV-7 from scratch, adapts it to a new task with Bone and with Bat, hands each adapter over as a file of
RWKV-PEFT, merges that into a ``.pth`` file, and runs it in the ``rwkv`` package.
"""

import argparse
from pathlib import Path

from client import completion_loss, generate, logits, open_client
from datasets import disable_progress_bars
from pretrain import SMALL, WORLD_01B, Size, pretrain
from rich.console import Console
from rich.table import Table

from bone_peft.bases import load_adapter, load_base
from bone_peft.cli.process import keep_freed_memory, quiet
from bone_peft.convert import convert
from bone_peft.data import load_data
from bone_peft.evaluation import Subject, evaluate
from bone_peft.evaluation.tokens import encode
from bone_peft.merging import merge
from bone_peft.rwkv.tokenizer import vocabulary_of
from bone_peft.training import Recipe, train

TASK = "gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1&size={size}&seed={seed}"
ADAPTERS = {"Bone": {"r": 64}, "Bat": {"r": 32, "init_weights": "bat", "share": "input"}}
PROMPT = "State the final answer to the following arithmetic problem: 3 + 4 ="


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("runs/demo-rwkv"))
    options.add_argument(
        "--full-size", action="store_true", help="the architecture of World 0.1B; takes 16 GB and time"
    )
    given = options.parse_args()
    quiet()
    keep_freed_memory()
    disable_progress_bars()
    console = Console()

    console.rule("a base from scratch", align="left")
    size = WORLD_01B if given.full_size else SMALL
    base, start, end = pretrain(given.out, size, console)
    console.print(f"Held-out text: {start:.3f} nats a token before, {end:.3f} after.", highlight=False)

    columns = {}
    for name, adapter in ADAPTERS.items():
        console.rule(name, align="left")
        columns[name] = adapt(given.out / name.lower(), base, adapter, size, console)
    table = Table("on held-out problems")
    for name in columns:
        table.add_column(name, justify="right")
    for row in columns["Bone"]:
        table.add_row(row, *(cells[row] for cells in columns.values()))
    console.print(table)


def adapt(out: Path, base: Path, adapter: dict, size: Size, console: Console) -> dict[str, str]:
    """One adapter from training to the client; the cells of its column."""
    recipe = Recipe(
        base=str(base),
        data=TASK.format(size=2000, seed=1),
        eval_data=TASK.format(size=size.held_out, seed=2),
        out=str(out),
        chat=False,
        dtype="float32",
        adapter=adapter,
        training={
            "max_steps": size.adapter_steps,
            "per_device_train_batch_size": size.batch_size,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 2,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": max(size.adapter_steps // 10, 1),
        },
    )
    result = train(recipe, force=True, console=console)
    scores = evaluate(
        {"before": Subject(str(base)), "after": Subject(str(base), result.adapter)},
        lambda tokenizer: load_data(str(recipe.eval_data), tokenizer=tokenizer, chat=False),
        dtype="float32",
    )
    theirs, merged = out / "rwkv-peft.pth", out / "merged.pth"
    convert(result.adapter, "rwkv", theirs, force=True)
    merge(str(base), theirs, merged, force=True)

    client = open_client(merged)
    model, tokenizer = load_base(str(base), dtype="float32")
    rows = [encode(row, tokenizer) for row in load_data(str(recipe.eval_data), tokenizer=tokenizer, chat=False)]
    ours = load_adapter(model, theirs)(input_ids=tokenizer(PROMPT, return_tensors="pt")["input_ids"]).logits[0]
    error = (logits(client, tokenizer(PROMPT)["input_ids"]) - ours).abs().max() / ours.abs().max()
    console.print(f"In rwkv: {PROMPT} {generate(client, vocabulary_of(base), PROMPT)}", highlight=False)
    return {
        "loss (nats a token), base": f"{scores['before'].loss:.4f}",
        "loss, adapted": f"{scores['after'].loss:.4f}",
        "loss, merged, in the rwkv package": f"{completion_loss(client, rows):.4f}",
        "exact match, base": f"{scores['before'].exact_match:.0%}",
        "exact match, adapted": f"{scores['after'].exact_match:.0%}",
        "largest difference of logits, of the largest logit": f"{error:.0e}",
        "trainable parameters": f"{result.trainable_parameters:,}",
        "training seconds": f"{result.seconds:.0f}",
    }


if __name__ == "__main__":
    main()
