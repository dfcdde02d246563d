"""The benchmark runs on a CPU, on a small shape."""

import json

import pytest
import torch
from typer.testing import CliRunner

from bone_peft.cli.bench import app
from bone_peft.costs.bench import inference, training_step
from bone_peft.costs.bench.contestants import CONTESTANTS, FLOOR, Setting, contestant
from bone_peft.costs.bench.shapes import random_model
from bone_peft.errors import BoneError
from bone_peft.runs.benchmark import Whole, measure

from ..runs.tiny import make_base, sums, write_rows

SMALL = Setting(r=16, lora_r=8)


@pytest.mark.slow
def test_every_contestant_takes_a_step():
    regime = training_step.Regime("tiny", layers=1, batch=1, length=8, device="cpu", rounds=1, steps=2)
    results = training_step.measure(regime, SMALL, list(CONTESTANTS), say=lambda _: None)
    assert list(results) == list(CONTESTANTS)
    for name, row in results.items():
        assert row["ms"] > 0
        assert (row["parameters"] > 0) == (name != FLOOR)


def test_contestants_share_the_weights_and_nothing_else():
    base = random_model("tiny", 1, torch.float32, "cpu")
    models = [contestant(name, base, SMALL) for name in ("bone", "peft-miss")]
    shared = {id(p) for p in base.parameters()}
    for model in models:
        assert shared <= {id(p) for p in model.parameters()}
        assert all(id(p) not in shared for p in model.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in base.parameters())


def test_inference_merged_and_mixed():
    regime = inference.Regime("tiny", layers=1, batch=3, prompt=8, tokens=16, device="cpu", rounds=1)
    names = ["bone", "bone-merged", "bone-mixed"]
    results = inference.measure(regime, SMALL, names, say=lambda _: None)
    assert list(results) == [FLOOR, *names]
    assert all(row[kind]["tokens_s"] > 0 for row in results.values() for kind in ("prefill", "decode"))


def test_names_that_do_not_exist():
    base = random_model("tiny", 1, torch.float32, "cpu")
    with pytest.raises(BoneError, match="no contestant lora2"):
        contestant("lora2", base, SMALL)
    with pytest.raises(BoneError, match="neither a known shape"):
        random_model("llama9", 1, torch.float32, "cpu")


def test_the_command_keeps_its_results(tmp_path):
    words = "train --shape tiny --layers 1 --batch 1 --length 8 -r 16 --lora-r 8 --rounds 1 --steps 2 --device cpu"
    files = ["--json", str(tmp_path / "r.json"), "--chart", str(tmp_path / "r.png")]
    done = CliRunner().invoke(app, [*words.split(), "--only", "bone", "--only", "peft-lora", *files])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "r.json").read_text())
    assert set(record["results"]) == {"floor", "bone", "peft-lora"}
    assert record["machine"]["torch"] == torch.__version__
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_whole_runs_of_both_sides(tmp_path):
    """Each in a process of its own, counted from outside: the same rows in the same steps give the same tokens."""
    base = make_base(tmp_path / "base", chat=False)
    rows = write_rows(tmp_path / "rows.jsonl", sums(40))
    words = f"run --shape tiny --layers 1 --tokenizer {base} --data {rows} --fields query response"
    words += " --steps 8 --batch 2 --r 4 --lora-r 2 --rounds 1"
    names = ["--only", "bone", "--only", "peft-lora"]
    files = ["--json", str(tmp_path / "r.json"), "--chart", str(tmp_path / "r.png")]
    done = CliRunner().invoke(app, [*words.split(), *names, *files])
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    assert list(results) == ["bone", "peft-lora"]
    ours, theirs = (results[name]["runs"][0] for name in results)
    assert ours["tokens"] == theirs["tokens"] > 0
    assert all(run["whole_s"] > run["first_step_s"] > 0 and run["losses"] == [] for run in (ours, theirs))
    assert "x LoRA" in done.output and (tmp_path / "r.png").stat().st_size > 1000


def test_a_whole_run_that_fails_is_said(tmp_path):
    whole = Whole(str(tmp_path / "nothing"), str(tmp_path / "no.jsonl"), steps=8)
    assert "nothing" in measure(whole, ["bone"], say=lambda _: None)["bone"]["failed"]
    with pytest.raises(BoneError, match="'lora2' is no contestant"):
        measure(whole, ["lora2"])
