"""What only a process of its own can show: kills, signals, full disks, several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bone_peft.runs.training.run_folder import RunFolder

STEPS = 8


def command(base, rows, out, *more):
    return [
        *(sys.executable, "-m", "bone_peft", "train", "--base", base, "--data", rows, "--fields", "query", "response"),
        *("--out", str(out), "--no-bf16", "--r", "8", "--target-modules", "all-linear", "--lr", "1e-2"),
        *("--steps", str(STEPS), "--batch-size", "2", "--set", "training.save_steps=2"),
        *("--set", "training.gradient_checkpointing=false", "--dropout", "0.1", *more),
    ]


def run(arguments, **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        arguments, check=False, capture_output=True, text=True, env=environment, timeout=300, **kwargs
    )


def history(out, kind="loss"):
    entries = json.loads((Path(out) / "result.json").read_text())["history"]
    return [(entry["step"], entry[kind]) for entry in entries if kind in entry]


@pytest.fixture(scope="module")
def uninterrupted(plain_base, rows_file, tmp_path_factory):
    """A whole run, and its losses."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = run(command(plain_base, rows_file, out))
    assert done.returncode == 0, done.stderr
    return history(out)


# Runs `train` in a process that signals itself at the end of a step: exact, unlike a sleep.
AT_STEP = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
from bone_peft.runs.training.callbacks import StopOnInterrupt
old = StopOnInterrupt.on_step_begin
def on_step_begin(self, args, state, control, **kwargs):
    if state.global_step == {step}:
        os.kill(os.getpid(), signal.{name})
    return old(self, args, state, control, **kwargs)
StopOnInterrupt.on_step_begin = on_step_begin
from bone_peft.cli.main import main
main()
"""


def signalled(arguments, name, step):
    return run([sys.executable, "-c", AT_STEP.format(name=name, step=step), *arguments[3:]])


@pytest.mark.slow
def test_ctrl_c_saves_and_kill_9_loses_no_more_than_a_checkpoint(plain_base, rows_file, tmp_path, uninterrupted):
    out = tmp_path / "run"
    stopped = signalled(command(plain_base, rows_file, out), "SIGINT", 2)
    assert stopped.returncode == 130
    assert f"Stopped at step 3 of {STEPS}" in stopped.stderr
    assert f"bone train --resume --out {out}" in " ".join(stopped.stderr.split())
    assert "Traceback" not in stopped.stderr
    assert RunFolder(out).last_checkpoint().name == "checkpoint-3"

    resume = [sys.executable, "-m", "bone_peft", "train", "--resume", "--out", str(out)]
    killed = signalled(resume, "SIGKILL", 5)
    assert killed.returncode == -signal.SIGKILL
    assert RunFolder(out).last_checkpoint().name == "checkpoint-4"
    assert not (out / "adapter").exists()
    resumed = run(resume)
    assert resumed.returncode == 0, resumed.stderr
    assert "checkpoint-4" in resumed.stdout
    assert history(out) == uninterrupted


# The kernel refuses to let any file grow past this limit: to a writer that is a full disk.
FULL = """
import resource, sys
from bone_peft.runs.training.callbacks import StopOnInterrupt
def on_step_begin(self, args, state, control, **kwargs):
    if state.global_step == {step}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
StopOnInterrupt.on_step_begin = on_step_begin
from bone_peft.cli.main import main
main()
"""


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_is_whole(plain_base, rows_file, tmp_path, uninterrupted):
    out = tmp_path / "run"
    arguments = command(plain_base, rows_file, out)[3:]
    full = run([sys.executable, "-c", FULL.format(step=5, limit=30_000), *arguments])
    assert full.returncode == 2, full.stderr
    assert "No space left" in full.stderr
    assert "Traceback" not in full.stderr
    assert RunFolder(out).last_checkpoint().name == "checkpoint-4"
    resumed = run([sys.executable, "-m", "bone_peft", "train", "--resume", "--out", str(out)])
    assert resumed.returncode == 0, resumed.stderr
    assert history(out) == uninterrupted
