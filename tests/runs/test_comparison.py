"""Studies: which runs they want, that counts are equal, what is kept. One run: ``test_comparison_runs``."""

import json
import math
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
import yaml
from typer.testing import CliRunner

from bone_peft.cli.main import app
from bone_peft.costs.measure import device_name
from bone_peft.errors import BoneError
from bone_peft.files.bases import load_base
from bone_peft.runs.comparison import Study, compare, one_run, summary, workers
from bone_peft.runs.comparison.compare import _size
from bone_peft.runs.comparison.compared import METHODS
from bone_peft.runs.comparison.equal_size import nearest_size, parameters
from bone_peft.runs.comparison.search import Trial, wanted
from bone_peft.runs.comparison.study import names

DOCS = Path(__file__).parents[2] / "docs"


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
    def rates(self, study_content, best, **values):
        study = Study.of({**study_content, "methods": {"bat": [0.01, 0.02]}, **values})
        results = found_by(study, by_rate("bat", best))
        return sorted(t.rate for t in results if t.seed == 0), {t.rate for t in results if t.seed > 0}, results

    def test_the_best_gets_the_other_seeds(self, study_content):
        tried, repeated, results = self.rates(study_content, 0.011, seeds=3, widen=0)
        assert tried == [0.01, 0.02]
        assert repeated == {0.01}
        assert len(results) == 4

    @pytest.mark.parametrize(
        ("best", "tried"), [(0.04, [0.01, 0.02, 0.04, 0.08]), (0.005, [0.0025, 0.005, 0.01, 0.02])]
    )
    def test_it_looks_beyond_an_end_that_is_best(self, study_content, best, tried):
        assert self.rates(study_content, best, widen=5)[:2] == (tried, {best})

    def test_and_not_for_ever(self, study_content):
        tried, repeated, _ = self.rates(study_content, 10.0, widen=2)
        assert tried == [0.01, 0.02, 0.04, 0.08]
        assert repeated == {0.08}

    def test_a_run_that_fails_is_no_best_and_is_not_repeated(self, study_content):
        study = Study.of({**study_content, "methods": {"bat": [0.01, 0.02]}, "widen": 0, "seeds": 1})
        results = found_by(study, lambda t: {"failed": "NaN"} if t.rate == 0.01 else {"loss": 9.0})
        (line,) = summary(study, results, {}, {})
        assert (line.rate, line.why) == (0.02, "")
        results = found_by(study, lambda t: {"failed": "NaN"})
        (line,) = summary(study, results, {}, {})
        assert (line.rate, line.why, len(results)) == (None, "NaN", 2)


def test_lines_are_means_with_standard_errors_the_best_first(study_content):
    study = Study.of({**study_content, "methods": {"lora": [0.01], "bat": [0.01]}, "seeds": 3, "widen": 0})
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


def test_what_peft_refuses_is_a_sentence(study_content):
    class Refusing:
        def __getattr__(self, name):
            raise ValueError("no such layer")

    with pytest.raises(BoneError, match="dora does not adapt this base: no such layer; leave"):
        _size(Refusing(), "dora", Study.of(study_content), 100)


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
    def test_it_writes_its_runs_a_summary_and_charts(self, study_content, started, tmp_path):
        said = []
        lines = compare(Study.of(study_content), say=said.append)
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

    def test_it_goes_on_where_it_was(self, study_content, started, tmp_path):
        compare(Study.of(study_content), say=lambda sentence: None)
        whole = [*started]
        (tmp_path / "study" / "runs" / "lora-lr0.02-seed0.json").unlink()
        (tmp_path / "study" / "runs" / "bat-lr0.01-seed0.json").write_text('{"loss": 1')  # cut off
        started.clear()
        compare(Study.of({**study_content, "seeds": 3}), say=lambda sentence: None)
        again = {trial.name for _, trial in started}
        assert again == {"lora-lr0.02-seed0", "bat-lr0.01-seed0", "bat-lr0.005-seed2", "lora-lr0.005-seed2"}
        assert len(whole) > len(started)

    def test_times_of_a_table_are_of_one_device(self, study_content, started, tmp_path):
        compare(Study.of(study_content), say=lambda sentence: None)
        kept = tmp_path / "study" / "runs" / "bat-steps.json"
        kept.write_text(json.dumps(json.loads(kept.read_text()) | {"device": "another GPU"}))
        started.clear()
        compare(Study.of(study_content), say=lambda sentence: None)
        assert [(what, trial.method) for what, trial in started] == [("time", "bat")]

    def test_what_did_not_come_to_its_end_is_tried_again(self, study_content, monkeypatch, started):
        lost = {"failed": "killed", "unfinished": True}
        real = workers.Workers.run
        monkeypatch.setattr(workers.Workers, "run", lambda self, w, t: real(self, w, t) if w == "time" else lost)
        said = []
        lines = compare(Study.of(study_content), say=said.append)
        assert [line.why for line in lines] == ["killed", "killed"] and "(3); start it again" in said[-1]
        monkeypatch.setattr(workers.Workers, "run", real)
        assert [line.why for line in compare(Study.of(study_content), say=lambda sentence: None)] == ["", ""]

    def test_runs_of_another_study_are_not_mixed_in(self, study_content, started, tmp_path):
        compare(Study.of(study_content), say=lambda sentence: None)
        with pytest.raises(BoneError, match="differs in r, training"):
            compare(Study.of({**study_content, "r": 4, "training": {**study_content["training"], "max_steps": 5}}))
        other = tmp_path / "other"
        other.mkdir()
        (other / "mine.txt").write_text("mine")
        with pytest.raises(BoneError, match="something else than a study"):
            compare(Study.of({**study_content, "out": str(other)}))

    def test_a_study_of_your_own_hand_stays_as_it_is(self, study_content, started, tmp_path):
        mine = tmp_path / "study" / "study.yaml"
        mine.parent.mkdir()
        text = "# my thoughts on this\n" + yaml.safe_dump(study_content)
        mine.write_text(text)
        with pytest.raises(BoneError, match=r"study\.yaml"):
            compare(Study.load(mine), say=lambda sentence: None)
        assert mine.read_text() == text and not started

    def test_as_many_at_once_as_are_asked_for(self, study_content, monkeypatch):
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
        study_content |= {"methods": {"bat": [0.01], "lora": [0.01]}, "seeds": 1, "widen": 0}
        compare(Study.of(study_content), jobs=2, say=lambda sentence: None)
        assert max(most) == 2

    def test_a_torch_for_gpus_where_there_is_none_takes_one_at_once(self, study_content, monkeypatch):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        assert workers.Workers(Study.of(study_content), {}, None)._jobs == 1

    def test_who_stops_a_study_stops_its_runs(self, study_content, monkeypatch):
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
        study_content |= {"methods": {"bat": [0.01], "lora": [0.01]}}
        with pytest.raises(KeyboardInterrupt, match="start it again"):
            compare(Study.of(study_content), jobs=2, say=lambda sentence: None)
        assert sleeping[0].returncode == -signal.SIGTERM

    def test_who_stops_a_run_that_is_waited_for_ends_it(self, study_content, monkeypatch):
        def stopped(process):
            raise KeyboardInterrupt

        monkeypatch.setattr(subprocess.Popen, "communicate", stopped)
        monkeypatch.setattr(workers, "_MODULE", "http.server")  # anything that goes on
        with pytest.raises(KeyboardInterrupt), workers.Workers(Study.of(study_content), {}, 1) as pool:
            try:
                pool.run("time", Trial("bat", 0.01, 0))
            finally:
                (process,) = pool._running
        assert process.returncode is not None

    def test_settings_are_looked_at_before_anything_is_run(self, study_content, started, tmp_path):
        with pytest.raises(BoneError, match="max_stepz"):
            compare(Study.of({**study_content, "training": {"max_stepz": 3}}))
        assert not started and not (tmp_path / "study").exists()

    @pytest.mark.slow
    def test_a_run_is_a_process_of_its_own(self, study_content):
        study = Study.of(study_content)
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
def test_what_is_wrong_in_a_study_is_named(study_content, values, says):
    with pytest.raises(BoneError, match=says):
        Study.of({**study_content, **values})


def test_a_study_is_read_back_as_it_was_written(study_content, tmp_path):
    study = Study.of({**study_content, "methods": ["bat", "lora"], "learning_rates": [2e-3, 1e-3]})
    path = tmp_path / "study.yaml"
    path.write_text(study.to_yaml())
    assert Study.load(path) == study
    assert study.methods == {"bat": [1e-3, 2e-3], "lora": [1e-3, 2e-3]}
    assert yaml.safe_load(study.to_yaml())["training"] == study_content["training"]


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


@pytest.mark.parametrize("name", names())
def test_shipped_studies_are_whole(name):
    study = Study.load(name, {"out": "elsewhere"})
    assert study.out == "elsewhere" and study.recipe.checked()
    with pytest.raises(BoneError, match="There is no study 'summs'"):
        Study.load("summs")
