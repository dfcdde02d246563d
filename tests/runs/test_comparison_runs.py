"""One run of a study: that it is one of ``bone train``, what it leaves, and how several share a machine."""

import json
import os
import queue
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from bone_peft.errors import BoneError
from bone_peft.files.bases import load_adapter, load_base
from bone_peft.runs.comparison import Study, one_run, workers
from bone_peft.runs.comparison.compared import METHODS
from bone_peft.runs.comparison.equal_size import parameters
from bone_peft.runs.comparison.search import Trial
from bone_peft.runs.data import load_data
from bone_peft.runs.evaluation import score
from bone_peft.runs.evaluation.likelihood import _rows_that_fit
from bone_peft.runs.free_memory import NoRoomError, taking
from bone_peft.runs.training import Recipe, train
from bone_peft.runs.training.trainer import RunTrainer


def test_a_run_is_that_of_bone_train(study_content, tmp_path):
    study = Study.of(study_content)
    found = one_run.learn(study, Trial("bat", 0.01, 1), 8)
    shared = {key: study_content[key] for key in ("base", "data", "eval_data", "fields", "dtype")}
    recipe = Recipe(**shared, seed=1, out=str(tmp_path / "run")).with_values(
        {
            "adapter": {"r": 8, "target_modules": "all-linear", "init_weights": "bat"},
            "training": {**study_content["training"], "learning_rate": 0.01},
        }
    )
    result = train(recipe)
    model, tokenizer = load_base(study_content["base"], dtype="float32")
    model = load_adapter(model, result.adapter)
    rows = load_data(study_content["eval_data"], tokenizer=tokenizer, fields=study_content["fields"])
    assert found["loss"] == pytest.approx(score(model, tokenizer, rows, samples=1).loss, rel=1e-5)
    held_out = [[entry["step"], entry["eval_loss"]] for entry in result.history if "eval_loss" in entry]
    assert found["curve"] == [[step, pytest.approx(loss, rel=1e-5)] for step, loss in held_out]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "bat"])
def test_every_method_learns(study_content, name):
    found = one_run.learn(Study.of({**study_content, "answers": 1, "methods": {name: [0.01]}}), Trial(name, 0.01, 0), 4)
    first, *_, last = found["curve"]
    assert last[1] < first[1]
    assert found["answered"] == 1 and found["rows"] == 12


def test_time_and_memory_are_of_the_first_steps(study_content, monkeypatch):
    looked_at = []
    monkeypatch.setattr(RunTrainer, "evaluate", lambda self, rows: looked_at.append((self.state.global_step, rows)))
    found = one_run.time_steps(
        Study.of({**study_content, "training": {**study_content["training"], "max_steps": 50}}),
        Trial("lora", 0.01, 0),
        2,
    )
    assert found["step_ms"] > 0 and 0 < found["peak_bytes"] <= found["run_bytes"]
    ((step, rows),) = looked_at  # when the clock has stopped
    assert (step, len(rows)) == (8, 4)
    base, _ = load_base(study_content["base"])
    assert found["parameters"] == parameters(base.to("meta"), METHODS["lora"].config(2, "all-linear"))


def no_room():
    raise NoRoomError("too long")


def no_memory():
    try:
        raise torch.OutOfMemoryError("CUDA out of memory")
    except torch.OutOfMemoryError as error:
        raise BoneError("The base cannot be run") from error


def no_number():
    try:
        raise ArithmeticError
    except ArithmeticError:
        raise BoneError("Step 3: the loss is NaN") from None


@pytest.mark.parametrize(("fails", "unfinished"), [(no_room, True), (no_memory, True), (no_number, False)])
def test_what_may_pass_is_no_result(study_content, monkeypatch, capsys, fails, unfinished):
    study = Study.of(study_content)
    trial = {"method": "bat", "rate": 0.01, "seed": 0}
    spec = {"study": study.to_dict(), "trial": trial, "what": "learn", "size": 8, "parent": os.getppid(), "share": None}
    monkeypatch.setattr(one_run, "learn", lambda *_, **__: fails())
    monkeypatch.setattr(sys, "argv", ["one_run", json.dumps(spec)])
    one_run.main()
    result = json.loads(capsys.readouterr().out)
    assert result["failed"] and result.get("unfinished", False) is unfinished


def test_a_run_ends_with_the_study_that_started_it(monkeypatch):
    codes = queue.SimpleQueue()
    monkeypatch.setattr(os, "_exit", codes.put)
    one_run._end_with(os.getppid() + 1)  # as if that was gone
    assert codes.get(timeout=20) != 0
    one_run._end_with(os.getppid())
    with pytest.raises(queue.Empty):
        codes.get(timeout=0.1)


@pytest.mark.parametrize(
    ("out", "result"),
    [
        ('\n{"loss": 1}\n', {"loss": 1}),
        ('{"loss": 1}\nflushed at exit: 3\n7\n', {"loss": 1}),
        ("3\n", None),
        ("", None),
    ],
)
def test_a_result_is_found_whatever_is_said_after_it(out, result):
    assert workers._result_in(out) == result


def test_held_out_rows_that_tell_memory_are_the_longest():
    rows = Dataset.from_dict({"input_ids": [[1], [1, 2, 3], [1, 2]]})
    assert [len(ids) for ids in one_run._longest(rows, 2)["input_ids"]] == [2, 3]


def test_a_run_scores_in_its_share_of_a_gpu(monkeypatch):
    """Memory of the words of rows of 10 tokens, 100 words: 12 bytes each, and 4 for each pair of tokens."""
    row = 10 * (100 * 12 + 10 * 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * row, 20 * row))
    for counted in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, counted, lambda device: row)
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=100))
    model = SimpleNamespace(config=config, dtype=torch.bfloat16, device=torch.device("cuda"))
    fitting = []
    for share in (None, 5 * row, row):
        with taking(share):
            fitting.append(_rows_that_fit(model, [10] * 20))
    assert fitting == [8, 3, 1]  # 85 % of what is free; of four rows, one of five being taken; one, which has to be
    with taking(row), pytest.raises(NoRoomError, match="1,000 tokens"):
        _rows_that_fit(model, [1000])


class TestWorkers:
    @pytest.mark.parametrize(
        ("jobs", "new", "running", "joins"),
        [
            (None, "small", ["small"] * 3, True),
            (None, "small", ["small"] * 4, False),
            (None, "small", ["large"], True),
            (None, "large", ["large"], False),
            (None, "small", ["large", "small"], False),  # 70 + 25 + 25: each of four has a quarter
            (None, "unknown", ["small"], False),
            (None, "unknown", [], True),
            (None, "small", ["unknown"], False),
            (2, "large", ["large"], True),
            (2, "large", ["large"] * 2, False),
        ],
    )
    def test_runs_share_a_gpu_as_far_as_its_memory_goes(self, study_content, monkeypatch, jobs, new, running, joins):
        monkeypatch.setattr(workers, "_room", lambda: 100.0)
        pool = workers.Workers(Study.of(study_content), {}, jobs)
        pool._needs = {"small": 10, "large": 70}
        others = [Trial(name, 0.1, seed) for seed, name in enumerate(running)]
        assert pool._may_join(Trial(new, 0.2, 0), others) is joins

    def test_what_is_lost_beside_others_is_tried_by_itself(self, study_content, monkeypatch):
        going, alone, results = [], [], {}
        together = threading.Barrier(2)
        lost = Trial("bat", 0.1, 0)

        def run(self, what, trial):
            going.append(trial)
            if trial.seed < 2 and trial not in alone:
                together.wait(timeout=20)
            result = {"unfinished": True, "failed": "out of memory"} if trial in (lost, last) else {}
            if trial == lost and trial in alone:
                result = {"beside": len(going) - 1}
            alone.append(trial)
            going.remove(trial)
            return result

        last = Trial("bat", 0.1, 2)
        trials = [lost, Trial("bat", 0.1, 1), last]
        monkeypatch.setattr(workers.Workers, "run", run)
        with workers.Workers(Study.of(study_content), {}, 2) as pool:
            pool.run_all(lambda: [t for t in trials if t not in results], {"bat": 1}, results.__setitem__)
        assert results[lost] == {"beside": 0} and results[trials[1]] == {}
        assert results[last]["unfinished"]
