"""Whose a run's folder is: what is not a run's own stays, and an old run stays until the new one is worth something."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bone_peft.errors import BoneError
from bone_peft.io import rename
from bone_peft.io.locks import locked
from bone_peft.runs.training import Recipe, TrainingStopped, train
from bone_peft.runs.training.callbacks import StopOnInterrupt
from bone_peft.runs.training.run_folder import RunFolder

from .test_train import losses, recipe

SAVING = {"training__save_steps": 1, "training__max_steps": 3}


@pytest.fixture(scope="module")
def old_run(plain_base, rows_file, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(plain_base, rows_file, out))
    return out


@pytest.fixture
def out(old_run, tmp_path):
    """A copy of it that is a test's own."""
    return shutil.copytree(old_run, tmp_path / "run")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_0_1(out):
    for manifest in out.rglob(".bone.json"):
        manifest.unlink()


@pytest.fixture
def at_step(monkeypatch):
    """Do something at the end of a step."""

    def set_up(step, action):
        on_step_end = StopOnInterrupt.on_step_end

        def listen(self, args, state, control, **kwargs):
            if state.global_step == step:
                action()
            on_step_end(self, args, state, control, **kwargs)

        monkeypatch.setattr(StopOnInterrupt, "on_step_end", listen)

    return set_up


def fail():
    raise BoneError("It failed.")


@pytest.mark.parametrize("options", [{}, {"force": True}, {"resume": True}])
@pytest.mark.parametrize(
    "path",
    ["checkpoints/best.pt", "checkpoints/checkpoint-7/optimizer.pt", "tensorboard/log", "adapter/x", "recipe.yaml"],
)
def test_what_no_run_wrote_is_kept(plain_base, rows_file, tmp_path, path, options):
    out = tmp_path / "run"
    (out / path).parent.mkdir(parents=True)
    (out / path).write_text("base: mine\n")
    with pytest.raises(BoneError, match=f"holds {path.partition('/')[0]}, written by no run"):
        train(recipe(plain_base, rows_file, out), **options)
    assert contents(out) == {path: b"base: mine\n"}


def test_other_files_beside_a_run_are_none_of_its_business(plain_base, rows_file, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    train(recipe(plain_base, rows_file, out, training__max_steps=1))
    assert (out / "notes.txt").read_text() == "mine" and (out / "adapter").exists()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "path",
    ["notes.txt", "adapter/notes.txt", "checkpoints/mine", "checkpoints/checkpoint-3/notes.txt", "tensorboard/x"],
)
def test_force_names_what_the_run_did_not_write(plain_base, rows_file, out, path, old):
    if old:
        of_0_1(out)
    (out / path).write_text("mine")
    before = contents(out)
    with pytest.raises(BoneError, match=f"holds {path}, which its run did not write"):
        train(recipe(plain_base, rows_file, out, seed=1), force=True)
    if path.startswith("checkpoints"):  # the Trainer deletes old checkpoints whole
        with pytest.raises(BoneError, match=f"holds {path}"):
            train(recipe(plain_base, rows_file, out), resume=True)
    assert contents(out) == before


@pytest.mark.parametrize("old", [False, True])
def test_force_replaces_a_run(plain_base, rows_file, out, old):
    if old:
        of_0_1(out)
    result = train(recipe(plain_base, rows_file, out, seed=1, **SAVING | {"training__save_steps": 2}), force=True)
    assert [path.name for path in out.parent.iterdir()] == ["run"]
    assert Recipe.load(out / "recipe.yaml").seed == 1 and result.adapter == str(out / "adapter")
    assert sorted(path.name for path in (out / "checkpoints").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    log = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in log.Scalars("train/loss")] == [1, 2, 3]
    train(recipe(plain_base, rows_file, out, seed=2, training__max_steps=1), force=True)


def test_a_run_of_0_1_goes_on(plain_base, rows_file, out):
    of_0_1(out)
    before = contents(out)
    for name in ("adapter", "checkpoints/checkpoint-3"):
        shutil.rmtree(out / name)
    (out / "result.json").unlink()
    (out / "checkpoints" / ".trainer.txt").write_text("mine")
    with pytest.raises(BoneError, match=r"holds checkpoints/\.trainer\.txt"):
        train(recipe(plain_base, rows_file, out), resume=True)
    (out / "checkpoints" / ".trainer.txt").unlink()
    assert train(recipe(plain_base, rows_file, out), resume=True).steps == 3
    after = contents(out)
    assert all(after[path] == before[path] for path in before if path.endswith("model.safetensors"))


@pytest.mark.parametrize(
    "values",
    [
        {"adapter__target_modules": ["nothing"]},
        {"training__learning_rate": -1.0},
        {"training__per_device_train_batch_size": 0},
        {"training__max_length": 2},
        {"data": "nothing.jsonl"},
        {"base": "./nothing"},
    ],
)
def test_a_start_that_fails_leaves_the_old_run(plain_base, rows_file, out, values):
    before = contents(out.parent)
    with pytest.raises(BoneError):
        train(
            recipe(plain_base, rows_file, out).with_values({k.replace("__", "."): v for k, v in values.items()}),
            force=True,
        )
    assert contents(out.parent) == before


def test_the_old_run_stays_until_the_first_checkpoint(plain_base, rows_file, out, at_step):
    before = contents(out.parent)
    at_step(1, fail)
    with pytest.raises(BoneError, match="It failed"):
        train(recipe(plain_base, rows_file, out, seed=1, **SAVING), force=True)
    assert contents(out.parent) == before


def test_a_failure_before_the_first_checkpoint_is_not_in_the_way(plain_base, rows_file, tmp_path, at_step):
    out = tmp_path / "run"

    def fill_the_disk():
        # TRL's card of a checkpoint comes before the checkpoint's own folder.
        (out / "checkpoints").mkdir(exist_ok=True)
        (out / "checkpoints" / "README.md").write_text("")
        fail()

    troubles = [fill_the_disk]
    at_step(1, lambda: troubles and troubles.pop()())
    with pytest.raises(BoneError, match="It failed"):
        train(recipe(plain_base, rows_file, out, **SAVING))
    assert not out.exists() or not list(out.iterdir())
    assert train(recipe(plain_base, rows_file, out, **SAVING)).adapter


def test_after_the_first_checkpoint_the_new_run_is_there_and_goes_on(plain_base, rows_file, out, at_step, monkeypatch):
    plan = recipe(plain_base, rows_file, out, seed=1, adapter__bone_dropout=0.1, **SAVING)
    with monkeypatch.context():
        at_step(2, fail)
        with pytest.raises(BoneError, match="It failed"):
            train(plan, force=True)
    assert Recipe.load(out / "recipe.yaml") == plan.checked() and not (out / "adapter").exists()
    assert RunFolder(out).last_checkpoint().name == "checkpoint-1"
    at_step(2, lambda: None)
    monkeypatch.undo()
    resumed = losses(train(plan, resume=True))
    whole = losses(
        train(recipe(plain_base, rows_file, out.parent / "whole", seed=1, adapter__bone_dropout=0.1, **SAVING))
    )
    assert resumed == whole


def test_without_checkpoints_the_adapter_is_the_first_to_show(plain_base, rows_file, out, at_step):
    train(recipe(plain_base, rows_file, out, seed=1, training__save_strategy="no"), force=True)
    assert not list(out.glob("checkpoints/*-*")) and (out / "report.html").exists()
    assert json.loads((out / "result.json").read_text())["recipe"]["seed"] == 1


def test_the_best_checkpoint_moves_along(plain_base, rows_file, out):
    best = {
        "training__save_total_limit": 5,
        "training__eval_strategy": "steps",
        "training__eval_steps": 1,
        "training__load_best_model_at_end": True,
    }
    held_out = out.parent / "held-out.jsonl"
    held_out.write_text('{"query": "1+1=", "response": "2"}\n')
    train(recipe(plain_base, rows_file, out, eval_data=str(held_out), **best, **SAVING), force=True)
    for state in out.glob("checkpoints/*/trainer_state.json"):
        assert Path(json.loads(state.read_text())["best_model_checkpoint"]).parent == out / "checkpoints"


def test_what_comes_into_the_old_run_meanwhile_is_kept(plain_base, rows_file, out, at_step):
    at_step(1, lambda: (out / "notes.txt").write_text("mine"))
    with pytest.raises(BoneError, match=r"holds notes\.txt"):
        train(recipe(plain_base, rows_file, out, seed=1, **SAVING), force=True)
    assert (out / "notes.txt").read_text() == "mine" and Recipe.load(out / "recipe.yaml").seed == 0


def test_one_folder_one_process(plain_base, rows_file, out):
    before = contents(out)
    with locked(out):
        for options in ({"force": True}, {"resume": True}):
            with pytest.raises(BoneError, match=r"Another process is writing to .*run; wait"):
                train(recipe(plain_base, rows_file, out), **options)
    assert contents(out) == before


def test_a_run_in_its_place_is_held_for_all_its_time(plain_base, rows_file, out, at_step):
    def second():
        for options in ({"force": True}, {"resume": True}):
            with pytest.raises(BoneError, match="Another process"):
                train(plan, **options)
        seen.append(plan.out)

    seen = []
    at_step(2, second)  # by then a run that replaces another one is in its place
    for plan in (
        recipe(plain_base, rows_file, out, seed=1, **SAVING),
        recipe(plain_base, rows_file, out.parent / "new", **SAVING),
    ):
        train(plan, force=True)
    assert seen == [str(out), str(out.parent / "new")]


def test_a_run_never_replaces_what_it_reads(plain_base, rows_file, out, tmp_path, monkeypatch):
    rows = str(shutil.copy(rows_file, out / "rows.jsonl"))
    base = shutil.copytree(plain_base, tmp_path / "models" / "base")
    adapter = {"adapter": {}, "continue_from": str(out / "adapter")}
    before = contents(tmp_path)
    for plan in (
        recipe(plain_base, rows, out),
        recipe(plain_base, rows_file, out, eval_data=rows),
        recipe(str(base), rows_file, base),
        recipe(str(base), rows_file, base.parent),
        Recipe(base=plain_base, data=rows_file, out=str(out), fields=["query", "response"], **adapter),
    ):
        with pytest.raises(BoneError, match="in use"):
            train(plan, force=True)
    assert contents(tmp_path) == before
    (out / "rows.jsonl").unlink()
    monkeypatch.chdir(out)
    with pytest.raises(BoneError, match="in use"):
        train(recipe(plain_base, rows_file, "."), force=True)


def test_links_and_the_home_folder(plain_base, rows_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("disk/run")
    for seed, name in enumerate(("~/link", str(tmp_path / "link"), "~/disk/run")):
        train(recipe(plain_base, rows_file, name, seed=seed, training__max_steps=1), force=True)
        assert Recipe.load(tmp_path / "disk" / "run" / "recipe.yaml").seed == seed
    assert (tmp_path / "link").is_symlink() and sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_save_and_stop(plain_base, rows_file, tmp_path, at_step, name):
    number = signal.Signals[name]
    before = signal.signal(number, signal.default_int_handler)
    at_step(1, lambda: os.kill(os.getpid(), number))
    try:
        with pytest.raises(TrainingStopped, match="Stopped at step 1 of 3") as stop:
            train(recipe(plain_base, rows_file, tmp_path / "run"))
        assert stop.value.number == number and signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert RunFolder(tmp_path / "run").last_checkpoint().name == "checkpoint-1"


def test_a_signal_that_is_ignored_stays_so(plain_base, rows_file, tmp_path, at_step):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_step(1, lambda: os.kill(os.getpid(), signal.SIGHUP))
    try:
        assert train(recipe(plain_base, rows_file, tmp_path / "run", training__max_steps=2)).steps == 2
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_comes_back_when_a_kill_caught_it_on_its_way_out(plain_base, rows_file, out):
    """As between the two renames of a system that has no exchange."""
    before = contents(out)
    aside = rename.aside(out, "old")
    out.rename(aside)
    (out.parent / ".run.00000000.partial").mkdir()
    RunFolder(out).recover()
    assert contents(out) == before
    assert train(recipe(plain_base, rows_file, out), resume=True).steps == 3
    assert [path.name for path in out.parent.iterdir()] == ["run"]
