"""The loss on held-out rows while a run goes on: when it is taken, what is kept, and when a run ends."""

import io
import shutil
from dataclasses import replace
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
from bone_peft.runs.training import Recipe, train
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
    assert found[0][1] == pytest.approx(exact, rel=1e-5)
    assert abs(reference_loss(plain_base, rows_file) - exact) > 1e-3 * exact
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
    assert "not better in 2 looks" in said.getvalue() and f"adapter of step {best} is kept" in said.getvalue()
    kept = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    saved = load_file(tmp_path / "run" / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert all((kept[name] == saved[name]).all() for name in saved)
    page, card = (
        (tmp_path / "run" / "report.html").read_text(),
        (tmp_path / "run" / "adapter" / "README.md").read_text(),
    )
    (first, _), (lowest, _) = looks(result)[0][::-1], min(found)
    assert f"from {first:.3f} to {lowest:.3f} at step {best}, whose adapter is kept" in page
    assert f"{first:.3f} → {lowest:.3f} (step {best}, which is kept)" in card
    # It is finished: nothing is left to do.
    before = (tmp_path / "run" / "result.json").read_bytes()
    again = train(plan, resume=True)
    assert again.steps == result.steps and (tmp_path / "run" / "result.json").read_bytes() == before
    # Killed before its adapter was written, and moved: the same, from the checkpoints.
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    shutil.rmtree(moved / "adapter")
    (moved / "result.json").unlink()
    again = train(replace(plan, out=str(moved)), resume=True)
    kept = load_file(moved / "adapter" / "adapter_model.safetensors")
    assert again.steps == result.steps and again.kept_step == best
    assert all((kept[name] == saved[name]).all() for name in saved)
    # Its recipe can be told otherwise.
    other = Recipe.load(moved / "recipe.yaml").with_values({"keep": "last", "early_stopping": None})
    assert train(replace(other, out=str(tmp_path / "last"))).kept_step is None


@pytest.mark.parametrize("told", ["save_steps", "eval_steps"])
def test_looks_and_checkpoints_are_at_the_same_steps(plain_base, tmp_path, told):
    rows, held_out = spoiled(tmp_path)
    given = {"training__max_steps": 24, "training__per_device_train_batch_size": 8, f"training__{told}": 5}
    result = train(recipe(plain_base, rows, tmp_path / "run", eval_data=held_out, keep="best", **given))
    found = looks(result)
    assert [step for step, _ in found if step] == [5, 10, 15, 20, 24]
    assert result.kept_step == min((loss, step) for step, loss in found if step)[1]


def test_the_loss_is_that_of_tokens_however_rows_are_batched(plain_base, rows_file, tmp_path):
    rows = [{"query": "1+1=", "response": "2"}] * 4 + [{"query": "2+2=", "response": "4" * 60}] * 4
    rows = str(write_rows(tmp_path / "uneven.jsonl", rows))
    given = {"training__eval_strategy": "steps", "training__eval_steps": 3}
    found = [
        looks(train(recipe(plain_base, rows_file, tmp_path / f"run{size}", eval_data=rows, **given, **batch)))
        for size, batch in ((size, {"training__per_device_eval_batch_size": size}) for size in (1, 8))
    ]
    losses = [loss for ((_, loss),) in found]
    assert losses == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_held_out_rows_without_an_answer_are_said_before_the_run(plain_base, rows_file, tmp_path):
    rows = str(write_rows(tmp_path / "long.jsonl", [{"query": "1" * 90, "response": "2"}]))
    plan = recipe(plain_base, rows_file, tmp_path / "run", eval_data=rows, keep="best", training__max_length=40)
    with pytest.raises(BoneError, match=r"No held-out row .* has an answer within 40 tokens"):
        train(plan)


def test_rows_that_ask_the_same_are_not_split(plain_base, tmp_path):
    same = [{"query": "write a poem", "response": f"poem {n}"} for n in range(40)]
    with pytest.raises(BoneError, match="Too many of the 40 rows ask the same to hold 10 of them out"):
        train(recipe(plain_base, str(write_rows(tmp_path / "same.jsonl", same)), tmp_path / "run", eval_split=True))
    rows = str(write_rows(tmp_path / "half.jsonl", [*same[:15], *sums(45)]))
    result = train(recipe(plain_base, rows, tmp_path / "half", eval_split=True))
    assert 10 <= result.held_out_removed <= 20 and result.rows == 60 - result.held_out_removed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--keep", "best"], "keep: best and early_stopping go by held-out rows: give eval_data"),
        (["--early-stopping", "2"], "keep: best and early_stopping go by held-out rows"),
        (["--keep", "all"], "keep in the command line must be last or best, found 'all'"),
        (
            ["--early-stopping", "0", "--eval-split"],
            "early_stopping in the command line must be a whole number",
        ),
        (
            ["--keep", "best", "--eval-split", "--set", "training.save_steps=4", "--set", "training.eval_steps=2"],
            "save whenever they look",
        ),
        (["--keep", "best", "--eval-split", "--set", "training.save_strategy=no"], "save whenever they look"),
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
    plain = answer_samples(model, tokenizer, rows, max_new_tokens=8)
    assert [sample["base"] for sample in result.samples] == [sample["answer"] for sample in plain]


@pytest.mark.parametrize("found", [[2.0, 1.0, 1.5], [1.0, 2.0]])
def test_a_loss_that_was_better_before_is_not_hidden(found):
    history = [{"step": step, "eval_loss": loss} for step, loss in enumerate(found)]
    best = min(found)
    said = verdict(SimpleNamespace(history=history, kept_step=None))
    assert f"to {found[-1]:.3f}." in said and f"best after step {found.index(best)}, with {best:.3f}" in said
    assert verdict(SimpleNamespace(history=[{"step": 1, "loss": 3.0}], kept_step=None)) == ""


def test_a_smoothed_curve_ends_near_its_last_values():
    flat = smoothed([3.0] * 50)
    assert flat == pytest.approx([3.0] * 50)
    assert smoothed([5.0] * 50 + [1.0] * 50)[-1] == pytest.approx(1.0, abs=0.01)
