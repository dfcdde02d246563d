"""How many processes ``bone train`` starts, and in which way."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bone_peft import BoneError
from bone_peft.cli import devices
from bone_peft.runs.training import Recipe


@pytest.fixture
def four_gpus(monkeypatch):
    for name in devices._OF_LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1000))


def test_all_gpus_or_as_many_as_are_asked_for(four_gpus, monkeypatch):
    assert [devices.processes(given) for given in ("auto", "1", "3")] == [4, 1, 3]
    # A run that goes on is by as many as before, if nobody says how many.
    assert [devices.processes("auto", before) for before in (1, 2, 8)] == [1, 2, 4]
    assert devices.processes("3", 2) == 3
    for wrong, message in (("5", "There are 4 GPUs here"), ("0", "auto or a number"), ("two", "auto or a number")):
        with pytest.raises(BoneError, match=message):
            devices.processes(wrong)
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_RANK"):  # Started by somebody.
        monkeypatch.setenv(name, "1")
        assert devices.processes("auto") == 1
        monkeypatch.delenv(name)


def test_without_gpus_it_is_one(four_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [devices.processes(given) for given in ("auto", "2")] == [1, 2]


@pytest.mark.parametrize(("nbytes", "way"), [(600, "ddp"), (800, "fsdp2")])
def test_a_base_that_fills_a_gpu_is_shared(four_gpus, monkeypatch, nbytes, way):
    monkeypatch.setattr("bone_peft.files.checkpoints.open_checkpoint", lambda base: SimpleNamespace(nbytes=nbytes))
    recipe = Recipe(base="folder")
    assert devices.chosen("auto", recipe) == way
    assert devices.chosen("fsdp2", recipe) == "fsdp2"
    with pytest.raises(BoneError, match="choose one of auto, ddp, fsdp2"):
        devices.chosen("zero9", recipe)
    # It says so itself, and a quantized one is small.
    assert devices.chosen("auto", Recipe(base="folder", tensor_parallel=True)) == "tp"
    assert devices.chosen("auto", Recipe(base="folder", quantize="4bit")) == "ddp"


@pytest.mark.parametrize("name", ["fsdp2", "zero3", "hsdp"])
def test_the_configurations_in_docs_are_accelerate_s(name):
    from accelerate.commands.config.config_args import load_config_from_file

    given = load_config_from_file(str(Path(__file__).parents[2] / "docs" / "accelerate" / f"{name}.yaml"))
    assert given.num_processes > 1 and (given.fsdp_config or given.deepspeed_config)


def test_deepspeed_has_to_be_there(four_gpus, monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(BoneError, match="pip install deepspeed"):
        devices.chosen("zero3", Recipe(base="folder"))


def test_a_base_that_is_not_there_is_for_the_run_to_tell(four_gpus):
    assert devices.chosen("auto", Recipe(base="nowhere")) == "ddp"
