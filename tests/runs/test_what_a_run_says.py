"""A run tells the truth: numbers that are none stop it, what is cut is counted, and finished means finished."""

import importlib
import io
import json
import shutil

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from bone_peft.errors import BoneError
from bone_peft.io.json_text import json_text
from bone_peft.runs import evaluation
from bone_peft.runs.data import load_data
from bone_peft.runs.evaluation.tokens import encode
from bone_peft.runs.training import Recipe, train
from bone_peft.runs.training.answer_trainer import AnswerTrainer
from bone_peft.runs.training.train import TrainingStopped

from .test_train import losses, recipe
from .tiny import make_base, sums, write_rows

training = importlib.import_module("bone_peft.runs.training.train")  # the function has the module's name


def told(plan, **how):
    """The result of a run, and what it printed."""
    out = io.StringIO()
    result = train(plan, console=Console(file=out, width=1000), **how)
    return result, out.getvalue()


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def steps_saved(out):
    return sorted(int(path.name.split("-")[1]) for path in (out / "checkpoints").glob("checkpoint-*"))


def assert_stopped(plan, out, *words):
    """One sentence with these words; no adapter, no result, and every checkpoint finite."""
    with pytest.raises(BoneError) as error:
        train(plan)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert not (out / "adapter").exists()
    assert not (out / "result.json").exists()
    for step in steps_saved(out):
        saved = weights(out / "checkpoints" / f"checkpoint-{step}")
        assert all(tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.parametrize(("rate", "accumulated"), [(1e20, 1), (1e38, 2)])
def test_a_loss_that_is_no_number_stops_the_run(plain_base, rows_file, tmp_path, rate, accumulated):
    plan = recipe(plain_base, rows_file, tmp_path / "run", training__learning_rate=rate, training__max_steps=30)
    # A blow-up after a while: the first steps are as small as the warmup makes them.
    plan.training |= {"warmup_steps": 10, "gradient_accumulation_steps": accumulated, "save_steps": 1}
    assert_stopped(plan, tmp_path / "run", "Step ", "NaN", f"learning rate of {rate:g}", "lower training.learning_rate")
    assert steps_saved(tmp_path / "run")


def test_weights_that_a_step_made_infinite_are_not_saved(plain_base, rows_file, tmp_path):
    plan = recipe(plain_base, rows_file, tmp_path / "run", training__learning_rate=1e39, training__max_steps=1)
    assert_stopped(plan, tmp_path / "run", "Step 1", "the adapter is not finite", "learning rate")
    assert steps_saved(tmp_path / "run") == []


@pytest.mark.parametrize("ahead", [False, True])
def test_a_gradient_that_is_no_number_stops_the_run(plain_base, rows_file, tmp_path, monkeypatch, ahead):
    """Also where steps are queued ahead of a GPU, and their numbers are looked at later: before they are kept."""
    from transformers import Trainer

    monkeypatch.setattr(AnswerTrainer, "runs_ahead", ahead)

    calls = []

    def clip(self, model):
        calls.append(1)
        return torch.tensor(float("inf") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(Trainer, "_clip_grad_norm", clip)
    plan = recipe(plain_base, rows_file, tmp_path / "run", training__max_steps=8, training__logging_steps=100)
    plan.training["save_steps"] = 2
    assert_stopped(plan, tmp_path / "run", "Step 3", "norm of the gradient is infinite", "checkpoint-2")
    assert steps_saved(tmp_path / "run") == [2]
    assert len(calls) == (4 if ahead else 3)


def test_a_base_whose_numbers_outgrow_its_dtype_is_called_so(rows_file, tmp_path):
    base = make_base(tmp_path / "base", chat=False)
    file = base / "model.safetensors"
    tensors = {name: tensor * 600 if "mlp" in name else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    plan = recipe(str(base), rows_file, tmp_path / "run", dtype="float16")
    assert_stopped(plan, tmp_path / "run", "Step 1", "NaN", "float16 reaches only to 65504", "bfloat16")


def test_a_held_out_loss_that_is_no_number_stops_the_run(plain_base, rows_file, tmp_path, monkeypatch):
    from trl import SFTTrainer

    monkeypatch.setattr(SFTTrainer, "evaluate", lambda self, *args, **kwargs: {"eval_loss": float("nan")})
    plan = recipe(plain_base, rows_file, tmp_path / "run", training__eval_strategy="steps", training__eval_steps=2)
    plan.eval_data = str(write_rows(tmp_path / "held-out.jsonl", sums(2)))
    assert_stopped(plan, tmp_path / "run", "Step 2", "held-out rows is NaN")


def test_files_of_numbers_are_json():
    value = {"a": [float("nan"), 1.5], "b": {"c": float("-inf")}, "d": (1, "NaN", None)}
    assert json.loads(json_text(value), parse_constant=pytest.fail) == {
        "a": [None, 1.5],
        "b": {"c": None},
        "d": [1, "NaN", None],
    }


@pytest.fixture(scope="module")
def finished(plain_base, rows_file, tmp_path_factory):
    """A plan, and the folder it left."""
    out = tmp_path_factory.mktemp("finished") / "run"
    plan = recipe(plain_base, rows_file, out)
    train(plan)
    return plan, out


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_finished_run_says_so_and_stays_as_it_is(finished, monkeypatch):
    plan, out = finished
    before = contents(out)
    monkeypatch.setattr(training, "load_base", pytest.fail)
    result, said = told(plan, resume=True)
    assert "finished (3 steps); nothing is left to do" in said
    assert result.steps == 3
    assert contents(out) == before


@pytest.mark.parametrize("missing", ["adapter", "result.json", "report.html", "samples"])
def test_of_a_finished_run_only_what_is_missing_is_made(finished, tmp_path, missing):
    plan, out = finished
    out = shutil.copytree(out, tmp_path / "run")
    plan = plan.with_values({"out": str(out)})
    before, whole = contents(out), json.loads((out / "result.json").read_text())
    if missing == "samples":
        (out / "result.json").write_text(json.dumps({**whole, "samples": []}))
        (out / "report.html").unlink()
    elif missing == "adapter":
        shutil.rmtree(out / "adapter")
    else:
        (out / missing).unlink()
    result, said = told(plan, resume=True)
    assert "All steps are done" in said
    assert result.steps == 3
    after = contents(out)
    assert after.keys() == before.keys()
    for name in before:
        if name.startswith(("adapter/", "checkpoints/")) and name != "adapter/README.md":  # which tells times
            assert after[name] == before[name], name
    again = json.loads((out / "result.json").read_text())
    for key in ("history", "samples", "steps", "rows", "recipe", "trainable_parameters"):
        assert again[key] == whole[key], key


@pytest.mark.parametrize("value", ["no", False])
def test_a_finished_run_without_checkpoints(plain_base, rows_file, tmp_path, value):
    plan = recipe(plain_base, rows_file, tmp_path / "run", training__save_strategy=value)
    train(plan)
    assert steps_saved(tmp_path / "run") == []
    before = contents(tmp_path / "run")
    assert "nothing is left to do" in told(plan, resume=True)[1]
    assert contents(tmp_path / "run") == before


def test_the_adapter_and_the_result_are_there_before_the_answers(plain_base, rows_file, tmp_path, monkeypatch):
    out = tmp_path / "run"
    seen = {}

    def stop(*args, **kwargs):
        seen.update(contents(out))
        raise KeyboardInterrupt

    plan = recipe(plain_base, rows_file, out)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "answer_samples", stop)
        with pytest.raises(TrainingStopped, match=r"adapter is whole.*--resume"):
            train(plan)
    assert json.loads(seen["result.json"])["steps"] == 3
    assert weights(out / "adapter")
    result, _ = told(plan, resume=True)
    assert len(result.samples) == 6
    assert (out / "report.html").is_file()


def test_every_tenth_of_the_steps_is_saved(plain_base, rows_file, tmp_path):
    plan = recipe(plain_base, rows_file, tmp_path / "run", training__max_steps=25, training__save_total_limit=99)
    train(plan)
    assert steps_saved(tmp_path / "run") == [*range(3, 25, 3), 25]
    plan = recipe(plain_base, rows_file, tmp_path / "own", training__max_steps=5, training__save_steps=4)
    train(plan)
    assert steps_saved(tmp_path / "own") == [4, 5]


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({}, lambda prompt, answer, limit: prompt >= limit),
        ({"truncation_mode": "keep_end"}, lambda prompt, answer, limit: False),
        ({"packing": True}, lambda prompt, answer, limit: prompt >= limit),
    ],
)
def test_rows_that_are_cut_are_counted_and_said(plain_base, tmp_path, settings, lost):
    rows = [{"query": "q" * length, "response": "a" * 6} for length in (4, 12, 16, 19, 20, 21, 40)]
    file = str(write_rows(tmp_path / "rows.jsonl", rows))
    tokenizer = AutoTokenizer.from_pretrained(plain_base)
    sizes = [tuple(map(len, encode(row, tokenizer))) for row in load_data(file, fields=("query", "response"))]
    limit = 20
    cut = sum(prompt + answer > limit for prompt, answer in sizes)
    unanswered = sum(lost(prompt, answer, limit) for prompt, answer in sizes)
    assert (cut, unanswered) == (5, 3 if settings.get("truncation_mode") is None else 0)
    plan = recipe(plain_base, file, tmp_path / "run", training__max_length=limit, training__max_steps=1)
    plan.training |= settings
    result, said = told(plan)
    assert f"{cut} of 7 training rows are longer than 20 tokens and are cut" in said
    assert (f"{unanswered} of 7 training rows have no answer left" in said) == (unanswered > 0)
    assert said.index("are cut") < said.index("step 1/1")
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (written["rows"], written["rows_cut"], written["rows_unanswered"]) == (7, cut, unanswered)
    assert (result.rows_cut, result.rows_unanswered) == (cut, unanswered)


def test_nothing_is_said_of_rows_that_are_whole(plain_base, rows_file, tmp_path):
    result, said = told(recipe(plain_base, rows_file, tmp_path / "run", training__max_steps=1))
    assert "training rows" not in said
    assert (result.rows_cut, result.rows_unanswered) == (0, 0)


def test_cutting_counts_as_trl_drops(chat_base, tmp_path):
    # The trainer's own rows are those that are left.
    rows = [{"query": "q" * length, "response": "a" * 6} for length in range(1, 40)]
    file = str(write_rows(tmp_path / "rows.jsonl", rows))
    plan = recipe(chat_base, file, tmp_path / "run", training__max_length=20).checked()
    trainer, _, _, result = training.prepare(plan, training.RunFolder(plan.out), Console(quiet=True))
    assert len(trainer.train_dataset) == 39 - result.rows_unanswered
    assert 0 < result.rows_unanswered < result.rows_cut < 39


def test_rows_of_several_files(plain_base, tmp_path):
    files = [str(write_rows(tmp_path / f"{name}.jsonl", sums(4, start=9 * i))) for i, name in enumerate("ab")]
    result = train(recipe(plain_base, files, tmp_path / "run", training__max_steps=1))
    assert result.rows == 8
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").data == files
    pattern = train(recipe(plain_base, str(tmp_path / "*.jsonl"), tmp_path / "pattern", training__max_steps=1))
    assert losses(pattern) == losses(result)


@pytest.fixture(scope="module")
def halfway(plain_base, rows_file, tmp_path_factory):
    """A run of three steps that is killed after two."""
    out = tmp_path_factory.mktemp("halfway") / "run"
    plan = recipe(plain_base, rows_file, out, training__save_steps=1)
    train(plan)
    for name in ("checkpoints/checkpoint-3", "adapter"):
        shutil.rmtree(out / name)
    (out / "result.json").unlink()
    return plan, out


def absent(file):
    file.unlink()


def truncated(file):
    file.write_bytes(file.read_bytes()[:-30])


def no_archive(file):
    file.write_bytes(b"PK\x05\x06" + bytes(18))


def emptied(file):
    torch.save({}, file)


def misshapen(file):
    state = torch.load(file, weights_only=True)
    for value in state["state"].values():
        value["exp_avg"] = value["exp_avg"][:, :1]
    torch.save(state, file)


def of_words(file):
    torch.save({**torch.load(file, weights_only=False), "last_epoch": "two"}, file)


def of_text(text):
    return lambda file: file.write_text(text)


_BAD_STEP = '{"global_step": "2", "max_steps": 3, "log_history": []}'
_BAD_LOG = '{"global_step": 2, "max_steps": 3, "log_history": 5}'


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[(name, absent) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors")],
        *[(name, truncated) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")],
        *[(name, no_archive) for name in ("scheduler.pt", "rng_state.pth", "adapter_model.safetensors")],
        *[(name, emptied) for name in ("optimizer.pt", "rng_state.pth")],
        ("optimizer.pt", misshapen),
        ("scheduler.pt", of_words),
        *[("trainer_state.json", of_text(text)) for text in ("[]", "{}", _BAD_STEP, _BAD_LOG)],
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(halfway, tmp_path, name, damage):
    plan, out = halfway
    out = shutil.copytree(out, tmp_path / "run")
    damage(out / "checkpoints" / "checkpoint-2" / name)
    with pytest.raises(BoneError, match=r"damaged.*checkpoint-2|checkpoint-2.*damaged") as error:
        train(plan.with_values({"out": str(out)}), resume=True)
    assert "\n" not in str(error.value)
    assert "delete" in str(error.value)
    assert not (out / "adapter").exists()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"adapter.init_weights": "bat", "training.lr_scheduler_type": "constant"},
            "Bat, r 8, on 14 modules (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj); "
            "learning rate 0.01, constant.",
        ),
        (
            {"training.warmup_steps": 2, "adapter.target_modules": ["q_proj"]},
            "Bone, r 8, on 2 modules (q_proj); learning rate 0.01, cosine after 2 steps of warm-up.",
        ),
    ],
)
def test_what_decides_how_much_is_learned_is_said_first(plain_base, rows_file, tmp_path, values, line):
    _, text = told(recipe(plain_base, rows_file, tmp_path / "run", training__max_steps=1).with_values(values))
    assert line in text.splitlines()


@pytest.mark.parametrize(("steps", "warm_up"), [(1, 0), (33, 0), (80, 3)])
def test_warm_up_is_no_step_of_a_run_that_has_few(plain_base, rows_file, tmp_path, steps, warm_up):
    """A share of them is rounded up by Transformers, and the first step of a warm-up learns nothing."""
    plan = recipe(plain_base, rows_file, tmp_path / "run", training__max_steps=steps).checked()
    trainer, *_ = training.prepare(plan, training.RunFolder(plan.out), Console(quiet=True))
    assert trainer.args.get_warmup_steps(steps) == warm_up
