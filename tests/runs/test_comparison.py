"""Studies: which runs they want, that a run is that of ``bone train``, that counts are equal, what is kept."""

import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset
from typer.testing import CliRunner

from bone_peft.cli.main import app
from bone_peft.costs.measure import device_name
from bone_peft.errors import BoneError
from bone_peft.files.bases import load_adapter, load_base
from bone_peft.runs.comparison import Study, compare, one_run, summary, workers
from bone_peft.runs.comparison.compare import _size
from bone_peft.runs.comparison.compared import METHODS
from bone_peft.runs.comparison.equal_size import nearest_size, parameters
from bone_peft.runs.comparison.search import Trial, wanted
from bone_peft.runs.data import load_data
from bone_peft.runs.evaluation import score
from bone_peft.runs.evaluation.likelihood import _rows_that_fit
from bone_peft.runs.free_memory import NoRoomError, taking
from bone_peft.runs.training import Recipe, train
from bone_peft.runs.training.trainer import RunTrainer

from .tiny import sums, write_rows

DOCS = Path(__file__).parents[2] / "docs"
TRAINING = {"max_steps": 4, "per_device_train_batch_size": 4, "gradient_checkpointing": False}


@pytest.fixture
def content(plain_base, tmp_path):
    rows, test = (
        str(write_rows(tmp_path / f"{n}.jsonl", sums(12, start))) for n, start in (("train", 0), ("test", 40))
    )
    return {
        "base": plain_base,
        "data": rows,
        "eval_data": test,
        "fields": ["query", "response"],
        "dtype": "float32",
        "methods": {"bat": [0.01], "lora": [0.01, 0.02]},
        "seeds": 2,
        "widen": 1,
        "r": 8,
        "answers": 3,
        "timed_steps": 8,
        "training": TRAINING,
        "out": str(tmp_path / "study"),
    }


def found_by(study, loss):
    """All runs that a study wants, one after the other, with what they find."""
    results = {}
    while trials := wanted(study, results):
        results[trials[0]] = loss(trials[0])
    return results


def by_rate(method, best):
    """A loss that is least at the learning rate ``best``."""
    return lambda trial: {"loss": abs(math.log(trial.rate / best)) + 0.01 * trial.seed, "exact_match": 0.0}


class TestSearch:
    def rates(self, content, best, **values):
        study = Study.of({**content, "methods": {"bat": [0.01, 0.02]}, **values})
        results = found_by(study, by_rate("bat", best))
        return sorted(t.rate for t in results if t.seed == 0), {t.rate for t in results if t.seed > 0}, results

    def test_the_best_gets_the_other_seeds(self, content):
        tried, repeated, results = self.rates(content, 0.011, seeds=3, widen=0)
        assert tried == [0.01, 0.02]
        assert repeated == {0.01}
        assert len(results) == 4

    @pytest.mark.parametrize(
        ("best", "tried"), [(0.04, [0.01, 0.02, 0.04, 0.08]), (0.005, [0.0025, 0.005, 0.01, 0.02])]
    )
    def test_it_looks_beyond_an_end_that_is_best(self, content, best, tried):
        assert self.rates(content, best, widen=5)[:2] == (tried, {best})

    def test_and_not_for_ever(self, content):
        tried, repeated, _ = self.rates(content, 10.0, widen=2)
        assert tried == [0.01, 0.02, 0.04, 0.08]
        assert repeated == {0.08}

    def test_a_run_that_fails_is_no_best_and_is_not_repeated(self, content):
        study = Study.of({**content, "methods": {"bat": [0.01, 0.02]}, "widen": 0, "seeds": 1})
        results = found_by(study, lambda t: {"failed": "NaN"} if t.rate == 0.01 else {"loss": 9.0})
        (line,) = summary(study, results, {}, {})
        assert (line.rate, line.why) == (0.02, "")
        results = found_by(study, lambda t: {"failed": "NaN"})
        (line,) = summary(study, results, {}, {})
        assert (line.rate, line.why, len(results)) == (None, "NaN", 2)


def test_lines_are_means_with_standard_errors_the_best_first(content):
    study = Study.of({**content, "methods": {"lora": [0.01], "bat": [0.01]}, "seeds": 3, "widen": 0})
    values = {"lora": [1.0, 1.2, 1.1], "bat": [0.5, 0.7, 0.9]}
    results = found_by(study, lambda t: {"loss": values[t.method][t.seed], "exact_match": 0.5, "final_answer": None})
    lines = summary(study, results, {"bat": {"step_ms": 7.0, "peak_bytes": 5, "parameters": 3}}, {"bat": 8})
    assert [line.method for line in lines] == ["bat", "lora"]
    assert lines[0].means == {"loss": pytest.approx(mean(values["bat"])), "exact_match": 0.5}
    assert lines[0].errors["loss"] == pytest.approx(stdev(values["bat"]) / math.sqrt(3))
    assert (lines[0].size, lines[0].parameters, lines[0].step_ms, lines[0].runs) == (8, 3, 7.0, 3)
    assert lines[1].step_ms is None


def test_other_methods_get_the_rank_with_as_many_parameters(plain_base):
    base, _ = load_base(plain_base, device="cpu")
    base.to("meta")
    linears = [m.weight.shape for m in base.model.modules() if isinstance(m, torch.nn.Linear)]
    wanted_count = sum(8 * rows for rows, _ in linears)
    assert parameters(base, METHODS["bone"].config(8, "all-linear")) == wanted_count
    counts = {r: sum(r * (rows + columns) for rows, columns in linears) for r in range(1, 30)}
    nearest = min(counts, key=lambda r: abs(counts[r] - wanted_count))
    for name in ("lora", "pissa", "rslora"):
        assert nearest_size(base, METHODS[name], "all-linear", wanted_count) == nearest
    assert nearest_size(base, METHODS["lora"], "all-linear", 1) == 1


def test_what_peft_refuses_is_a_sentence(content):
    class Refusing:
        def __getattr__(self, name):
            raise ValueError("no such layer")

    with pytest.raises(BoneError, match="dora does not adapt this base: no such layer; leave"):
        _size(Refusing(), "dora", Study.of(content), 100)


def test_a_run_is_that_of_bone_train(content, tmp_path):
    study = Study.of(content)
    found = one_run.learn(study, Trial("bat", 0.01, 1), 8)
    shared = {key: content[key] for key in ("base", "data", "eval_data", "fields", "dtype")}
    recipe = Recipe(**shared, seed=1, out=str(tmp_path / "run")).with_values(
        {
            "adapter": {"r": 8, "target_modules": "all-linear", "init_weights": "bat"},
            "training": {**TRAINING, "learning_rate": 0.01},
        }
    )
    result = train(recipe)
    model, tokenizer = load_base(content["base"], dtype="float32")
    model = load_adapter(model, result.adapter)
    rows = load_data(content["eval_data"], tokenizer=tokenizer, fields=content["fields"])
    assert found["loss"] == pytest.approx(score(model, tokenizer, rows, samples=1).loss, rel=1e-5)
    held_out = [[entry["step"], entry["eval_loss"]] for entry in result.history if "eval_loss" in entry]
    assert found["curve"] == [[step, pytest.approx(loss, rel=1e-5)] for step, loss in held_out]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "bat"])
def test_every_method_learns(content, name):
    found = one_run.learn(Study.of({**content, "answers": 1, "methods": {name: [0.01]}}), Trial(name, 0.01, 0), 4)
    first, *_, last = found["curve"]
    assert last[1] < first[1]
    assert found["answered"] == 1 and found["rows"] == 12


def test_time_and_memory_are_of_the_first_steps(content, monkeypatch):
    looked_at = []
    monkeypatch.setattr(RunTrainer, "evaluate", lambda self, rows: looked_at.append((self.state.global_step, rows)))
    found = one_run.time_steps(
        Study.of({**content, "training": {**TRAINING, "max_steps": 50}}), Trial("lora", 0.01, 0), 2
    )
    assert found["step_ms"] > 0 and 0 < found["peak_bytes"] <= found["run_bytes"]
    ((step, rows),) = looked_at  # when the clock has stopped
    assert (step, len(rows)) == (8, 4)
    base, _ = load_base(content["base"])
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
def test_what_may_pass_is_no_result(content, monkeypatch, capsys, fails, unfinished):
    study = Study.of(content)
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
    def test_runs_share_a_gpu_as_far_as_its_memory_goes(self, content, monkeypatch, jobs, new, running, joins):
        monkeypatch.setattr(workers, "_room", lambda: 100.0)
        pool = workers.Workers(Study.of(content), {}, jobs)
        pool._needs = {"small": 10, "large": 70}
        others = [Trial(name, 0.1, seed) for seed, name in enumerate(running)]
        assert pool._may_join(Trial(new, 0.2, 0), others) is joins

    def test_what_is_lost_beside_others_is_tried_by_itself(self, content, monkeypatch):
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
        with workers.Workers(Study.of(content), {}, 2) as pool:
            pool.run_all(lambda: [t for t in trials if t not in results], {"bat": 1}, results.__setitem__)
        assert results[lost] == {"beside": 0} and results[trials[1]] == {}
        assert results[last]["unfinished"]


@pytest.fixture
def started(monkeypatch):
    """Runs that a study starts; they only say that they are done."""
    began = []

    def run(self, what, trial):
        began.append((what, trial))
        if what == "time":
            return {"step_ms": 5.0, "parameters": 10, "peak_bytes": 2**20, "device": device_name()}
        return {
            "loss": trial.rate,
            "exact_match": 0.5,
            "final_answer": None,
            "seconds": 1.0,
            "curve": [[0, 2.0], [4, 1.0]],
        }

    monkeypatch.setattr(workers.Workers, "run", run)
    return began


class TestStudy:
    def test_it_writes_its_runs_a_summary_and_charts(self, content, started, tmp_path):
        said = []
        lines = compare(Study.of(content), say=said.append)
        folder = tmp_path / "study"
        kept = {path.stem for path in (folder / "runs").iterdir()}
        assert {f"{trial.name}" for what, trial in started if what == "learn"} | {"bat-steps", "lora-steps"} == kept
        assert {"bat-lr0.01-seed0", "bat-lr0.005-seed0", "bat-lr0.005-seed1", "lora-lr0.02-seed0"} <= kept
        assert [line["method"] for line in json.loads((folder / "summary.json").read_text())] == ["bat", "lora"]
        assert {path.name for path in folder.glob("*.svg")} == {
            f"over-{what}.svg" for what in ("time", "memory", "rate", "steps")
        }
        assert lines[0].at_an_end
        assert any("bat trains 0.00 times as many" in sentence for sentence in said)
        assert any("bat, lr 0.005, seed 1: loss 0.0050" in sentence for sentence in said)

    def test_it_goes_on_where_it_was(self, content, started, tmp_path):
        compare(Study.of(content), say=lambda sentence: None)
        whole = [*started]
        (tmp_path / "study" / "runs" / "lora-lr0.02-seed0.json").unlink()
        (tmp_path / "study" / "runs" / "bat-lr0.01-seed0.json").write_text('{"loss": 1')  # cut off
        started.clear()
        compare(Study.of({**content, "seeds": 3}), say=lambda sentence: None)
        again = {trial.name for _, trial in started}
        assert again == {"lora-lr0.02-seed0", "bat-lr0.01-seed0", "bat-lr0.005-seed2", "lora-lr0.005-seed2"}
        assert len(whole) > len(started)

    def test_times_of_a_table_are_of_one_device(self, content, started, tmp_path):
        compare(Study.of(content), say=lambda sentence: None)
        kept = tmp_path / "study" / "runs" / "bat-steps.json"
        kept.write_text(json.dumps(json.loads(kept.read_text()) | {"device": "another GPU"}))
        started.clear()
        compare(Study.of(content), say=lambda sentence: None)
        assert [(what, trial.method) for what, trial in started] == [("time", "bat")]

    def test_what_did_not_come_to_its_end_is_tried_again(self, content, monkeypatch, started):
        lost = {"failed": "killed", "unfinished": True}
        real = workers.Workers.run
        monkeypatch.setattr(workers.Workers, "run", lambda self, w, t: real(self, w, t) if w == "time" else lost)
        said = []
        lines = compare(Study.of(content), say=said.append)
        assert [line.why for line in lines] == ["killed", "killed"] and "(3); start it again" in said[-1]
        monkeypatch.setattr(workers.Workers, "run", real)
        assert [line.why for line in compare(Study.of(content), say=lambda sentence: None)] == ["", ""]

    def test_runs_of_another_study_are_not_mixed_in(self, content, started, tmp_path):
        compare(Study.of(content), say=lambda sentence: None)
        with pytest.raises(BoneError, match="differs in r, training"):
            compare(Study.of({**content, "r": 4, "training": {**TRAINING, "max_steps": 5}}))
        other = tmp_path / "other"
        other.mkdir()
        (other / "mine.txt").write_text("mine")
        with pytest.raises(BoneError, match="something else than a study"):
            compare(Study.of({**content, "out": str(other)}))

    def test_a_study_of_your_own_hand_stays_as_it_is(self, content, started, tmp_path):
        mine = tmp_path / "study" / "study.yaml"
        mine.parent.mkdir()
        text = "# my thoughts on this\n" + yaml.safe_dump(content)
        mine.write_text(text)
        with pytest.raises(BoneError, match=r"study\.yaml"):
            compare(Study.load(mine), say=lambda sentence: None)
        assert mine.read_text() == text and not started

    def test_as_many_at_once_as_are_asked_for(self, content, monkeypatch):
        at_once, most = [], []

        def run(self, what, trial):
            if what == "time":
                return {"step_ms": 5.0, "parameters": 10, "peak_bytes": 2**20}
            at_once.append(trial)
            most.append(len(at_once))
            together.wait(timeout=20)
            at_once.remove(trial)
            return {"loss": trial.rate, "exact_match": 0.5, "final_answer": None, "seconds": 1.0}

        together = threading.Barrier(2)
        monkeypatch.setattr(workers.Workers, "run", run)
        content |= {"methods": {"bat": [0.01], "lora": [0.01]}, "seeds": 1, "widen": 0}
        compare(Study.of(content), jobs=2, say=lambda sentence: None)
        assert max(most) == 2

    def test_a_torch_for_gpus_where_there_is_none_takes_one_at_once(self, content, monkeypatch):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        assert workers.Workers(Study.of(content), {}, None)._jobs == 1

    def test_who_stops_a_study_stops_its_runs(self, content, monkeypatch):
        sleeping = []

        def run(self, what, trial):
            if what == "time":
                return {"step_ms": 5.0, "parameters": 10, "peak_bytes": 2**20}
            if trial.method == "bat":
                while not sleeping:
                    time.sleep(0.01)
                raise KeyboardInterrupt
            process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            self._running.add(process)
            sleeping.append(process)
            process.wait()
            return {"failed": "stopped", "unfinished": True}

        monkeypatch.setattr(workers.Workers, "run", run)
        content |= {"methods": {"bat": [0.01], "lora": [0.01]}}
        with pytest.raises(KeyboardInterrupt, match="start it again"):
            compare(Study.of(content), jobs=2, say=lambda sentence: None)
        assert sleeping[0].returncode == -signal.SIGTERM

    def test_who_stops_a_run_that_is_waited_for_ends_it(self, content, monkeypatch):
        def stopped(process):
            raise KeyboardInterrupt

        monkeypatch.setattr(subprocess.Popen, "communicate", stopped)
        monkeypatch.setattr(workers, "_MODULE", "http.server")  # anything that goes on
        with pytest.raises(KeyboardInterrupt), workers.Workers(Study.of(content), {}, 1) as pool:
            try:
                pool.run("time", Trial("bat", 0.01, 0))
            finally:
                (process,) = pool._running
        assert process.returncode is not None

    def test_settings_are_looked_at_before_anything_is_run(self, content, started, tmp_path):
        with pytest.raises(BoneError, match="max_stepz"):
            compare(Study.of({**content, "training": {"max_stepz": 3}}))
        assert not started and not (tmp_path / "study").exists()

    def test_a_run_is_a_process_of_its_own(self, content):
        study = Study.of(content)
        found = workers.Workers(study, {"bat": 8}, 1).run("learn", Trial("bat", 0.01, 0))
        here = one_run.learn(study, Trial("bat", 0.01, 0), 8)
        assert found["loss"] == pytest.approx(here["loss"], rel=1e-4)
        lost = workers.Workers(study, {"bat": 7}, 1).run("learn", Trial("bat", 0.01, 0))
        assert "7" in lost["failed"] and "unfinished" not in lost


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method": ["bat"]}, "did you mean 'methods'"),
        ({"methods": {"loraa": [0.1]}}, "'loraa' is no method"),
        ({"methods": ["bat"]}, "bat in the study needs learning rates"),
        ({"methods": {"bat": [0]}}, "bat in the study needs learning rates"),
        ({"methods": None}, "names no methods"),
        ({"eval_data": None}, "no eval_data"),
        ({"judge": "final_answer"}, "answer_after"),
        ({"judge": "luck"}, "judge in the study must be"),
        ({"seeds": 0}, "seeds in the study must be"),
        ({"targets": 3}, "targets in the study"),
        ({"training": {"learning_rate": 1}}, "what a study varies"),
        ({"out": ""}, "out in the study must be text"),
    ],
)
def test_what_is_wrong_in_a_study_is_named(content, values, says):
    with pytest.raises(BoneError, match=says):
        Study.of({**content, **values})


def test_a_study_is_read_back_as_it_was_written(content, tmp_path):
    study = Study.of({**content, "methods": ["bat", "lora"], "learning_rates": [2e-3, 1e-3]})
    path = tmp_path / "study.yaml"
    path.write_text(study.to_yaml())
    assert Study.load(path) == study
    assert study.methods == {"bat": [1e-3, 2e-3], "lora": [1e-3, 2e-3]}
    assert yaml.safe_load(study.to_yaml())["training"] == TRAINING


@pytest.mark.parametrize("told", ["help", "docs"])
def test_studies_that_are_shown_are_read(told):
    if told == "help":
        text = CliRunner().invoke(app, ["compare", "--help"]).output
    else:
        text = (DOCS / "accuracy.md").read_text("utf-8")
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    (example,) = re.findall(r"^ *base: [\s\S]*?^ *training: .*$", lines, re.M)
    study = Study.of(yaml.safe_load(textwrap.dedent(example)))
    assert {"bat", "lora"} <= set(study.methods)


@pytest.mark.parametrize("name", ["sums", "gsm-symbolic"])
def test_shipped_studies_are_whole(name):
    study = Study.load(name, {"out": "elsewhere"})
    assert study.out == "elsewhere" and study.recipe.checked()
    with pytest.raises(BoneError, match="There is no study 'summs'"):
        Study.load("summs")
