"""``bone train`` on two processes that share the model: what one process would have made of it."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from bone_peft import BoneError
from bone_peft.runs.training.run_folder import RunFolder
from bone_peft.runs.training.train import _keep_rows_a_step
from bone_peft.runs.training.trainer import RunTrainer

from .test_processes import STEPS, command, history, run
from .tiny import sums, write_rows

# Accelerate shards on GPUs; all else of it runs on CPUs as well.
LAUNCHED = """
import os, signal
from accelerate import ParallelismConfig, state
original = state.AcceleratorState.__init__
def init(self, *args, fsdp_plugin=None, **kwargs):
    original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == state.DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = state.DistributedType.FSDP, fsdp_plugin
        state.PartialState._shared_state["distributed_type"] = self.distributed_type
state.AcceleratorState.__init__ = init
ParallelismConfig._validate_accelerator = lambda self, accelerator: None
if "ACCELERATE_USE_DEEPSPEED" in os.environ:
    state.PartialState._prepare_backend = lambda *_: ("gloo", state.DistributedType.MULTI_CPU)
if "STOP_AT" in os.environ and os.environ["RANK"] == "1":
    from bone_peft.runs.training.callbacks import StopOnInterrupt
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == int(os.environ["STOP_AT"]):
            os.kill(os.getpid(), getattr(signal, os.environ["STOP_BY"]))
    StopOnInterrupt.on_step_begin = on_step_begin
if "WAITS" in os.environ and os.environ["RANK"] == "0":
    import ctypes
    from bone_peft.runs.training import lost_process
    lost_process._PATIENCE = 2
    from bone_peft.runs.training.trainer import RunTrainer
    backward = RunTrainer.training_step
    def training_step(self, *args, **kwargs):
        if self.state.global_step == int(os.environ["STOP_AT"]):
            ctypes.CDLL(None).sleep(100)  # outside of Python, where no signal is heard
            ctypes.CDLL(None).sleep(100)
        return backward(self, *args, **kwargs)
    RunTrainer.training_step = training_step
from bone_peft.cli.main import main
main()
"""

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
WAYS = {
    "fsdp2": {**FSDP2, "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"},
    "fsdp2-shards": {**FSDP2, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
    "zero3": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
    },
    "tp": {},
}


def sharded(folder, arguments, way, **environment):
    script = folder / "launched.py"
    script.write_text(LAUNCHED)
    # torchrun takes what starts like an option of its own, wherever it stands.
    if "--r" in arguments:
        place = arguments.index("--r")
        arguments = [*arguments[:place], "--set", "adapter.r=8", *arguments[place + 2 :]]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    return subprocess.run(
        [sys.executable, *launch, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **WAYS[way], **environment},
        timeout=300,
    )


@pytest.fixture(scope="session")
def ours(plain_base, rows_file, tmp_path_factory):
    """The command for a run without dropout, scored twice on held-out rows."""
    held_out = str(write_rows(tmp_path_factory.mktemp("rows") / "held-out.jsonl", sums(8, start=24)))
    scored = ["--eval-data", held_out, "--set", "training.eval_strategy=steps", "--set", "training.eval_steps=4"]
    return lambda out, *more: command(plain_base, rows_file, out, "--dropout", "0", *scored, *more)


@pytest.fixture(scope="module")
def of_one(ours, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    done = run(ours(out, "--batch-size", "4"))
    assert done.returncode == 0, done.stderr
    return out


def assert_same_run(out, other):
    (steps, losses), (_, expected) = zip(*history(out), strict=True), zip(*history(other), strict=True)
    assert len(steps) == STEPS and list(losses) == pytest.approx(list(expected), rel=1e-4)
    # The Trainer's loss of held-out rows is a mean over batches, which are others here.
    (steps, losses), (_, expected) = (zip(*history(folder, "eval_loss"), strict=True) for folder in (out, other))
    assert steps == (4, 8) and list(losses) == pytest.approx(list(expected), rel=2e-3)
    found, wanted = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (out, other))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


NEEDS = {"zero3": "deepspeed", "tp": "transformers.distributed.tensor_parallel"}


@pytest.mark.parametrize("way", ["fsdp2-shards", pytest.param("tp", marks=pytest.mark.slow)])
def test_a_signal_to_one_stops_both_and_the_run_goes_on(ours, tmp_path, of_one, way):
    if way in NEEDS:
        pytest.importorskip(NEEDS[way])
    # Under tensor parallel all processes have the same rows.
    more = ["--strategy", "tp", "--batch-size", "4"] if way == "tp" else []
    out = tmp_path / "out"
    arguments = ours(out, *more)[3:]
    stopped = sharded(tmp_path, arguments, way, STOP_AT="4", STOP_BY="SIGTERM")
    assert stopped.returncode != 0
    assert f"Stopped at step 5 of {STEPS}" in stopped.stderr, stopped.stderr
    checkpoint = RunFolder(out).last_checkpoint()
    assert checkpoint.name == "checkpoint-5"
    assert (checkpoint / "pytorch_model_fsdp_0").is_dir() == (way == "fsdp2-shards")
    resumed = sharded(tmp_path, ["train", "--resume", "--out", str(out)], way)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(out, of_one)
    assert (out / "report.html").is_file()


@pytest.mark.parametrize(
    ("way", "hangs"),
    [pytest.param("zero3", False, id="gone"), pytest.param("fsdp2", True, id="silent")],
)
@pytest.mark.slow
def test_without_one_process_the_other_ends_with_a_sentence(ours, tmp_path, way, hangs, of_one):
    if way in NEEDS:
        pytest.importorskip(NEEDS[way])
    out = tmp_path / "out"
    arguments = ours(out)[3:]
    # Two processes on a CPU hear at once that the other one is gone. GPUs wait.
    waits = {"WAITS": "1"} if hangs else {}
    died = sharded(tmp_path, arguments, way, STOP_AT="5", STOP_BY="SIGKILL", **waits)
    assert died.returncode != 0
    said = " ".join(died.stderr.split())
    assert "Another process of this run is gone after step 5" in said, died.stderr
    assert "checkpoint-4 is whole, and --resume goes on from it." in said
    assert "Traceback" not in died.stderr.partition("torch/distributed/elastic")[0]
    if not hangs:
        resumed = sharded(tmp_path, ["train", "--resume", "--out", str(out)], way)
        assert resumed.returncode == 0, resumed.stderr
        assert resumed.stdout.count("Adapter:") == 1
        assert_same_run(out, of_one)


def test_two_processes_that_each_hold_the_base(ours, tmp_path, of_one):
    two = run(ours(tmp_path / "two", "--devices", "2"))
    assert two.returncode == 0, two.stderr
    assert "Starting a process for each of 2 devices (ddp)." in two.stdout
    assert two.stdout.count("Adapter:") == 1
    assert_same_run(tmp_path / "two", of_one)

    # Taken up by one process before its last checkpoint, it takes both batches of a step.
    shutil.rmtree(tmp_path / "two" / "adapter")
    shutil.rmtree(tmp_path / "two" / "checkpoints" / f"checkpoint-{STEPS}")
    alone = run([sys.executable, "-m", "bone_peft", "train", "--resume", "--out", str(tmp_path / "two")])
    assert alone.returncode == 0, alone.stderr
    assert f"Continuing from {tmp_path / 'two' / 'checkpoints' / f'checkpoint-{STEPS - 2}'}" in alone.stdout
    assert_same_run(tmp_path / "two", of_one)


@pytest.mark.parametrize(
    ("before", "batches", "now", "then"), [(2, 1, 1, 2), (2, 3, 6, 1), (4, 1, 2, 2), (1, 4, 2, 2), (2, 3, 2, 3)]
)
def test_a_run_that_goes_on_keeps_its_rows_a_step(before, batches, now, then):
    arguments = SimpleNamespace(world_size=now, gradient_accumulation_steps=batches)
    _keep_rows_a_step(arguments, SimpleNamespace(processes=before, folder="checkpoint-2"))
    assert arguments.gradient_accumulation_steps == then


def test_or_is_refused():
    arguments = SimpleNamespace(world_size=2, gradient_accumulation_steps=1)
    with pytest.raises(BoneError, match="with 1 x 1 batches a step, which 2 processes cannot share evenly"):
        _keep_rows_a_step(arguments, SimpleNamespace(processes=1, folder="checkpoint-2"))


def test_a_quantized_base_is_not_sharded_by_fsdp():
    plugin = SimpleNamespace(fsdp_version=2)
    model = torch.nn.Linear(2, 2)
    model.is_quantized = True
    trainer = SimpleNamespace(accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)), plain_model=model)
    with pytest.raises(BoneError, match="take --strategy ddp"):
        RunTrainer._check_sharding(trainer)
    trainer.accelerator.state.fsdp_plugin = None
    RunTrainer._check_sharding(trainer)


def test_the_first_fsdp_does_not_take_two_dtypes():
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, dtype=torch.bfloat16)])
    plugin = SimpleNamespace(fsdp_version=1)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)), plain_model=model)
    with pytest.raises(
        BoneError, match=r"use FSDP2, with fsdp_version: 2 and fsdp_auto_wrap_policy: TRANSFORMER_BASED"
    ):
        RunTrainer._check_sharding(trainer)
    plugin.fsdp_version = 2
    RunTrainer._check_sharding(trainer)
