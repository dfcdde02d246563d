"""What ``bone inspect`` says of each format, of untrained and of broken adapters."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bone_peft.cli.main import app
from bone_peft.files.conversion import convert
from bone_peft.files.inspection import inspect_adapter

from ..models import config_for, llama, randomize


@pytest.mark.parametrize(
    "to,title", [("bone", "PEFT Bone folder"), ("miss", "PEFT MiSS folder"), ("rwkv", "RWKV-PEFT file")]
)
def test_formats(tmp_path, fixtures, to, title):
    out = tmp_path / ("out.pth" if to == "rwkv" else "out")
    convert(fixtures / "peft-0.18.1" / "bone-llama-ragged" / "adapter", to, out)
    found = inspect_adapter(out)
    assert (found.format, found.variant, found.r, found.targets) == (title, "bone", {5: 4}, ["down_proj", "q_proj"])
    assert found.parameters == 4 * 5 * 32 and found.bytes == 4 * found.parameters and found.dtypes == ["float32"]
    assert not found.untrained and found.nans == 0


def test_norms(fixtures):
    folder = fixtures / "peft-0.18.1" / "bone-llama" / "adapter"
    stored = load_file(folder / "adapter_model.safetensors")
    found = {module.name: module for module in inspect_adapter(folder).modules}
    assert len(found) == len(stored)
    for name, tensor in stored.items():
        module = found[name.removeprefix("base_model.model.").removesuffix(".bone_block")]
        assert module.norm == pytest.approx(tensor.double().norm().item()) and module.r == 8


@pytest.mark.parametrize("config", [config_for("bone"), config_for("bat"), config_for("bottleneck"), LoraConfig(r=4)])
def test_untrained(tmp_path, config):
    tuned = get_peft_model(llama(), config)
    tuned.save_pretrained(tmp_path)
    assert inspect_adapter(tmp_path).untrained
    for name, parameter in tuned.named_parameters():
        if "bone_" in name or "lora_" in name:
            torch.nn.init.ones_(parameter)
    tuned.save_pretrained(tmp_path)
    assert not inspect_adapter(tmp_path).untrained


def test_the_command(tmp_path):
    randomize(get_peft_model(llama(), config_for("bone"))).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    next(iter(stored.values()))[0, :2] = float("nan")
    save_file(stored, tmp_path / "adapter_model.safetensors")
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path), "--modules"])
    assert shown.exit_code == 0 and "Broken: 2 elements" in shown.output and "down_proj" in shown.output
    found = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path), "--json"]).stdout)
    assert found["nans"] == 2 and found["modules"][0]["norm"] is None


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "nowhere"],
        ["convert", "nowhere", "--to", "lora", "--out", "out"],
        ["merge", "--base", "nowhere", "--adapter", "nowhere", "--out", "out"],
        ["estimate", "./nowhere"],
    ],
)
def test_one_sentence_and_exit_code_2(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
