"""What a user may write that is odd: each is refused in one sentence, or does what it says; never a traceback.

``python -m fuzz.odd_input`` also tries every setting of a recipe with every value of ``VALUES``.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import traceback
from pathlib import Path

import typer

# Tried on every setting of TRL's SFTConfig, BoneConfig and the recipe itself.
VALUES = (
    *("null", "-1", "0", "0.5", "1", "3", "1e400", "-.inf", ".nan", "99999999999999999999", "true", "false", "no"),
    *("abc", "''", "[]", "[a]", "{}", "{a: 1}", "auto", "/nonexistent/x.json"),
)
# Added to a good `bone train`; words that its one sentence has to hold.
TRAIN = (
    ("--lr nan", "learning_rate"),
    ("--lr -1", "learning_rate"),
    ("--lr inf", "learning_rate"),
    ("--lr 0", "learning_rate"),
    ("--steps 0", "max_steps 0"),
    ("--steps -3", "max_steps -3"),
    ("--epochs 0", "num_train_epochs"),
    ("--epochs nan", "num_train_epochs"),
    ("--batch-size 0", "per_device_train_batch_size"),
    ("--batch-size -1", "per_device_train_batch_size"),
    ("--batch-size 99999999999999999999", "per_device_train_batch_size"),
    ("--grad-accum 0", "gradient_accumulation_steps"),
    ("--max-length 0", "max_length"),
    ("--max-length 1", "max_length answer"),
    ("--packing --max-length 3", "max_length answer"),
    ("--seed -1", "seed"),
    ("--seed 99999999999", "seed"),
    ("--dropout nan", "dropout"),
    ("--dropout 2", "dropout"),
    ("--target-modules (", "target_modules"),
    ("--init-weights [", "["),
    ("--data [/]", "[/]"),
    ("--data rows?.jsonl", "rows?.jsonl"),
    ("--data gym:chain_sum?size=[", "size"),
    ("--eval-data nope.jsonl", "nope.jsonl"),
    ("--continue-from nope", "nope"),
    ("--set =5", "no recipe key"),
    ("--set .", "="),
    ("--set training.=5", "training."),
    ("--set adapter=5", "adapter"),
    ("--set training=5", "training"),
    ("--set fields=5", "fields"),
    ("--set fields=[a]", "fields"),
    ("--set fields={a: b}", "fields"),
    ("--set data=5", "data"),
    ("--set data=[]", "data"),
    ("--set data=[[a]]", "data"),
    ("--set eval_data=[]", "eval_data"),
    ("--set out=5", "out"),
    ('--set out="a\\0b"', "out"),
    ("--set base=null", "base"),
    ("--set versions=1", "versions"),
    ("--set template=5", "template"),
    ("--set template='{completion}'", "{prompt}"),
    ("--set template='{prompt}{completion}{completion}'", "{completion}"),
    ("--set adapter.r=4.0", "adapter.r"),
    ("--set adapter.r=true", "adapter.r"),
    ("--set adapter.inference_mode=true", "inference_mode"),
    ("--set adapter.target_modules={a: 1}", "target_modules"),
    ("--set training.output_dir=x", "output_dir"),
    ("--set training.hub_token=secret", "HF_TOKEN"),
    ("--set training.max_steps=1e1", "max_steps"),
    ("--set training.bf16=maybe", "bf16"),
    ("--set training.push_to_hub=true", "offline"),
    ("--set training.eval_strategy=steps", "eval_data"),
    ("--set training.do_eval=true", "eval_data"),
    ("--set training.eval_on_start=true", "eval_data"),
    ("--set training.save_strategy=best", "best"),
    ("--set training.save_steps=0", "save_steps"),
    ("--set training.logging_steps=-1", "logging_steps"),
    ("--set training.deepspeed={a: 1}", "settings cannot be trained with"),
    ("--set training.deepspeed=x.json", "deepspeed"),
    ("--set training.fsdp=full_shard", "fsdp"),
    ("--set training.optim=galore_adamw", "optim"),
    ("--set training.optim=nonsuch", "nonsuch"),
    ("--set training.lr_scheduler_type=nonsuch", "nonsuch"),
    ("--set training.lr_scheduler_type=cosine_with_min_lr", "min_lr"),
    ("--set training.lr_scheduler_kwargs={a: 1}", "argument"),
    ("--set training.train_sampling_strategy=nonsuch", "train_sampling_strategy"),
    ("--set training.packing_strategy=nonsuch", "packing_strategy"),
    ("--set training.gradient_checkpointing_kwargs={a: 1}", "a"),
    ("--set training.use_liger_kernel=true", "liger"),
    ("--set training.torch_compile_mode=nonsuch", "nonsuch"),
    ("--set training.neftune_noise_alpha=1e300", "settings"),
    ("--set training.label_smoothing_factor=1", "label_smoothing_factor"),
    ("--set training.dataloader_persistent_workers=true", "num_workers"),
    ("--set training.assistant_only_loss=true", "template"),
    ("--set training.chat_template_path=nope", "settings"),
)
# Added to a good `bone eval` and `bone generate`.
EVAL = (
    ("--template x", "{prompt}"),
    ("--template {prompt}{completion}{completion}", "{completion}"),
    ("--data nope.jsonl", "nope.jsonl"),
    ("--data no*.jsonl", "no*.jsonl"),
    ("--data gym:", "task"),
    ("--data gym:chain_sum?size=x", "size"),
    ("--data /dev/null", "/dev/null"),
    ("--fields query", "fields"),
    ("--adapter nope", "nope"),
    ("--merged nope", "nope"),
)
GENERATE = (
    ("--temperature inf hi", "temperature"),
    ("--temperature 1e-300 hi", "temperature"),
    ("--temperature -1 hi", "temperature"),
    ("--seed -1 hi", "seed"),
    ("--seed 99999999999999 hi", "seed"),
    ("\ud800", "UTF-8"),
    ("--adapter nope hi", "nope"),
)
# Whole recipes.
RECIPES = (
    *("", "5", "[]", "a: &a [*a]", "base: !!python/object:os.system x", "\x00", "? [a]\n: b", "&a [", "!!binary x"),
    *("training:\n  learning_rate: !!float abc", "adapter: {1: 2}", "training: {null: 2}", "<<: 5", "seed: 2020-01-01"),
    *(
        "a: 2020-13-45",
        "seed: 0x",
        "seed: !!int x",
        "x: !!timestamp q",
        "x: !!bool q",
        "fields: 5",
        "%YAML 9.9\n---\na: b",
    ),
)


def main() -> None:
    """Try every setting with every value, on a tiny model; a quarter of an hour."""
    from tests.runs.tiny import make_base, sums, write_rows
    from trl import SFTConfig
    from typer.testing import CliRunner

    from bone_peft import BoneConfig
    from bone_peft.cli.main import app
    from bone_peft.runs.training import Recipe

    names = [f"training.{field.name}" for field in dataclasses.fields(SFTConfig)]
    names += [f"adapter.{field.name}" for field in dataclasses.fields(BoneConfig)]
    names += [field.name for field in dataclasses.fields(Recipe) if field.name != "out"]
    refused = taken = 0
    faults = []
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as work:
        base = make_base(Path(work, "base"), chat=True)
        rows = write_rows(Path(work, "rows.jsonl"), sums(6))
        out = Path(work, "run")
        good = f"train --base {base} --data {rows} --fields query response --no-bf16 --r 4 --target-modules q_proj"
        for name in names:
            for value in VALUES:
                done = CliRunner().invoke(
                    app, [*good.split(), "--steps", "2", "--out", str(out), "--set", f"{name}={value}"]
                )
                one_sentence = done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1
                if done.exit_code != 0 and not one_sentence:
                    shown = "".join(traceback.format_exception(done.exception)) if done.exception else done.stderr
                    faults.append(f"{name}={value}: {shown}")
                elif one_sentence and out.exists() and not done.stderr.startswith("Step "):  # it ran until then
                    faults.append(f"{name}={value}: left {sorted(path.name for path in out.iterdir())}")
                refused, taken = refused + one_sentence, taken + (done.exit_code == 0)
                shutil.rmtree(out, ignore_errors=True)
                os.environ.clear()
                os.environ.update(environment)
    print(f"{len(names) * len(VALUES)} settings: {refused} refused, {taken} taken, {len(faults)} faults")
    print("\n".join(faults))
    raise typer.Exit(bool(faults))


if __name__ == "__main__":
    typer.run(main)
