"""The loss on held-out rows while a run goes on: when it is taken, what is kept, and when a run ends."""

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from bone_peft.cli.main import app
from bone_peft.errors import BoneError
from bone_peft.runs.data import load_data
from bone_peft.runs.evaluation import answer_samples
from bone_peft.runs.training import train
from bone_peft.runs.training.callbacks import StopOnInterrupt
from bone_peft.runs.training.held_out_loss import MOST
from bone_peft.runs.training.plot import smoothed
from bone_peft.runs.training.report import verdict

from .test_train import recipe, reference_loss
from .tiny import sums, write_rows

FEW = {"training__max_steps": 20, "training__per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return str(write_rows(tmp_path_factory.mktemp("held-out") / "rows.jsonl", sums(31)[25:]))


def looks(result):
    return [(entry["step"], entry["eval_loss"]) for entry in result.history if "eval_loss" in entry]


def test_it_is_told_at_the_start_and_at_every_tenth(plain_base, rows_file, held_out, tmp_path):
    said = io.StringIO()
    plan = recipe(plain_base, rows_file, tmp_path / "run", eval_data=held_out, **{**FEW, "training__max_steps": 15})
    result = train(plan, console=Console(file=said, width=200))
    found = looks(result)
    assert [step for step, _ in found] == [0, 2, 4, 6, 8, 10, 12, 14, 15]
    exact = reference_loss(plain_base, held_out)
    assert found[0][1] == pytest.approx(exact, rel=0.05)  # a mean over batches
    assert f"step 15/15  held-out loss {found[-1][1]:.4f} ({found[0][1]:.4f} at first)" in said.getvalue()
    assert "best" not in said.getvalue()


def test_a_recipe_has_the_last_word(plain_base, rows_file, held_out, tmp_path):
    for given, steps in (
        ({"training__eval_strategy": "no"}, []),
        ({"training__eval_strategy": "steps", "training__eval_steps": 2}, [2, 3]),
    ):
        out = tmp_path / f"run{len(steps)}"
        assert [
            step for step, _ in looks(train(recipe(plain_base, rows_file, out, eval_data=held_out, **given)))
        ] == steps


def test_many_rows_are_not_all_asked_each_time(plain_base, rows_file, tmp_path, monkeypatch):
    seen = []
    from trl import SFTTrainer

    evaluate = SFTTrainer.evaluate
    monkeypatch.setattr(
        SFTTrainer,
        "evaluate",
        lambda self, *args, **kwargs: seen.append(len(self.eval_dataset)) or evaluate(self, *args, **kwargs),
    )
    rows = str(
        write_rows(
            tmp_path / "many.jsonl", [{"query": f"{n}+0=", "response": str(n)} for n in range(100, 100 + MOST + 7)]
        )
    )
    steps = {"training__max_steps": 1, "training__per_device_eval_batch_size": 64}
    train(recipe(plain_base, rows_file, tmp_path / "run", eval_data=rows, **steps))
    assert set(seen) == {MOST}


def test_a_split_holds_rows_out(plain_base, rows_file, tmp_path):
    result = train(recipe(plain_base, rows_file, tmp_path / "run", eval_split=True))
    assert result.rows + result.held_out_removed == 24 and result.held_out_removed >= 10
    assert looks(result) and result.samples_are_held_out
    again = train(recipe(plain_base, rows_file, tmp_path / "again", eval_split=True))
    assert looks(again) == looks(result)
    few = str(write_rows(tmp_path / "few.jsonl", sums(12)))
    with pytest.raises(BoneError, match="12 rows are too few to hold 10 of them out"):
        train(recipe(plain_base, few, tmp_path / "few", eval_split=True))


def spoiled(tmp_path):
    """Rows to learn that make those held out ever less likely, after a while."""
    rows = sums(24)
    wrong = [{**row, "response": "9" * len(row["response"])} for row in rows]
    right = [{"query": row["query"] + " ", "response": "1"} for row in rows[:6]]
    return str(write_rows(tmp_path / "wrong.jsonl", wrong)), str(write_rows(tmp_path / "right.jsonl", right))


def test_the_best_is_kept_and_a_run_ends_early(plain_base, tmp_path):
    rows, held_out = spoiled(tmp_path)
    said = io.StringIO()
    plan = recipe(
        plain_base,
        rows,
        tmp_path / "run",
        eval_data=held_out,
        keep="best",
        early_stopping=2,
        **{**FEW, "training__max_steps": 40},
    )
    result = train(plan, console=Console(file=said, width=200))
    found = [(loss, step) for step, loss in looks(result) if step]
    best = min(found)[1]
    assert result.steps == best + 2 * 4 < 40, found
    assert "not better in 2 looks" in said.getvalue() and f"kept: of step {best}," in said.getvalue()
    kept = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    saved = load_file(tmp_path / "run" / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert all((kept[name] == saved[name]).all() for name in saved)
    # It is finished: nothing is left to do.
    before = (tmp_path / "run" / "result.json").read_bytes()
    again = train(plan, resume=True)
    assert again.steps == result.steps and (tmp_path / "run" / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--keep", "best"], "keep: best goes by held-out rows: give eval_data"),
        (["--early-stopping", "2"], "early_stopping goes by held-out rows"),
        (["--keep", "all"], "keep in the command line must be last or best, found 'all'"),
        (
            ["--early-stopping", "0", "--eval-split"],
            "early_stopping in the command line must be a whole number",
        ),
        (["--eval-split", "--eval-data", "x.jsonl"], "has eval_data and eval_split"),
    ],
)
def test_what_cannot_be_is_said(plain_base, rows_file, tmp_path, options, sentence):
    told = ["--base", plain_base, "--data", rows_file, "--fields", "query", "response", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["train", *told, *options])
    said = str(result.exception) if isinstance(result.exception, BoneError) else result.output
    assert result.exit_code != 0 and sentence in " ".join(said.split())
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_goes_on_with_its_looks(plain_base, rows_file, held_out, tmp_path, monkeypatch):
    on_step_end = StopOnInterrupt.on_step_end

    def ask(self, args, state, control, **kwargs):
        self.trainer.is_asked_to_stop = state.global_step == 7
        on_step_end(self, args, state, control, **kwargs)

    plan = recipe(plain_base, rows_file, tmp_path / "run", eval_data=held_out, **FEW)
    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "on_step_end", ask)
        with pytest.raises(KeyboardInterrupt):
            train(plan)
    resumed = train(plan, resume=True)
    whole = train(recipe(plain_base, rows_file, tmp_path / "whole", eval_data=held_out, **FEW))
    assert [step for step, _ in looks(resumed)] == [0, *range(2, 21, 2)]
    assert looks(resumed) == looks(whole)


def test_the_report_says_first_whether_it_helped(plain_base, rows_file, held_out, tmp_path):
    result = train(recipe(plain_base, rows_file, tmp_path / "run", eval_data=held_out))
    page = (tmp_path / "run" / "report.html").read_text()
    (first, *_, last) = [loss for _, loss in looks(result)]
    assert f"The loss on held-out rows went from {first:.3f} to {last:.3f}." in page
    assert page.index("held-out rows went") < page.index("<svg")
    model = AutoModelForCausalLM.from_pretrained(plain_base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(plain_base)
    rows = load_data(held_out, fields=["query", "response"], tokenizer=tokenizer)
    plain = answer_samples(model, tokenizer, rows)
    assert [sample["base"] for sample in result.samples] == [sample["answer"] for sample in plain]


@pytest.mark.parametrize("found", [[2.0, 1.0, 1.5], [1.0, 2.0]])
def test_a_loss_that_was_better_before_is_not_hidden(found):
    history = [{"step": step, "eval_loss": loss} for step, loss in enumerate(found)]
    best = min(found)
    said = verdict(SimpleNamespace(history=history))
    assert f"to {found[-1]:.3f}." in said and f"best after step {found.index(best)}, with {best:.3f}" in said
    assert verdict(SimpleNamespace(history=[{"step": 1, "loss": 3.0}])) == ""


def test_a_smoothed_curve_ends_near_its_last_values():
    flat = smoothed([3.0] * 50)
    assert flat == pytest.approx([3.0] * 50)
    assert smoothed([5.0] * 50 + [1.0] * 50)[-1] == pytest.approx(1.0, abs=0.01)
