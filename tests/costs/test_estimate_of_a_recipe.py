"""``bone estimate`` takes the words of ``bone train``."""

import json
from pathlib import Path

import pytest
import torch
import typer.main
from peft import get_peft_model
from typer.testing import CliRunner

from bone_peft import BoneConfig, load_base
from bone_peft.cli.main import app
from bone_peft.costs.estimation.memory import base_bytes

from ..models import llama
from ..runs.tiny import make_base

OPTIONS = {"r": 16, "init_weights": "bat", "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("bases") / "llama"
    llama().save_pretrained(folder)
    return str(folder)


def estimate(*words):
    return CliRunner().invoke(app, ["estimate", *map(str, words)])


def first_cost(*words):
    done = estimate(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["costs"][0]


def write_recipe(path: Path, **keys) -> Path:
    path.write_text(json.dumps(keys))  # JSON is YAML
    return path


def test_every_flag_of_train_is_one_of_estimate():
    commands = typer.main.get_command(app).commands
    train, known = (
        {flag for p in commands[name].params if p.name != "recipe" for flag in (*p.opts, *p.secondary_opts)}
        for name in ("train", "estimate")
    )
    assert len(train) > 30
    assert train <= known | {"model"}


def test_the_words_of_a_training_command(base):
    words = ("--base", base, "--data", "rows.jsonl", "--fields", "question", "answer", "--out", "runs/x", "--steps", 2)
    cost = first_cost(*words, "--r", 16, "--init-weights", "bat", "--target-modules", "q_proj,v_proj", "--no-memory")
    config = BoneConfig(r=16, init_weights="bat", target_modules=["q_proj", "v_proj"])
    assert cost["trainable"] == get_peft_model(llama(), config).get_nb_trainable_parameters()[0]


def test_a_recipe_with_options_that_no_method_of_the_table_has(base, tmp_path):
    recipe = write_recipe(tmp_path / "my.yaml", base="elsewhere", data="rows.jsonl", adapter=OPTIONS)
    cost = first_cost(recipe, "--base", base, "--no-memory")
    assert cost["trainable"] == get_peft_model(llama(), BoneConfig(**OPTIONS)).get_nb_trainable_parameters()[0]
    assert (cost["method"], cost["size"]) == ("this recipe", 16)


def test_memory_is_that_of_the_steps_of_the_recipe(base, tmp_path):
    training = {"per_device_train_batch_size": 2, "max_length": 32}
    recipe = write_recipe(tmp_path / "my.yaml", base=base, dtype="float32", adapter={"r": 8}, training=training)
    as_recipe = first_cost(recipe)
    as_flags = first_cost("--base", base, "--r", 8, "--batch-size", 2, "--max-length", 32, "--no-bf16")
    assert as_recipe == as_flags
    longer = first_cost(recipe, "--max-length", 64)
    assert longer["training_bytes"] > as_recipe["training_bytes"]
    assert "a step of 2 rows of 32 tokens" in estimate(recipe).output


def test_a_quantized_base_is_as_small_as_bitsandbytes_makes_it(tmp_path):
    pytest.importorskip("bitsandbytes", reason="the bitsandbytes extra is not installed")
    folder = str(make_base(tmp_path / "base", chat=False, hidden=64))
    model, _ = load_base(folder, quantize="4bit")
    states = [parameter.quant_state for parameter in model.parameters() if hasattr(parameter, "quant_state")]
    assert states
    scales = sum(4 * state.absmax.numel() for state in states)  # float32, but in the layout of some CPUs
    taken = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters()) + scales
    assert base_bytes(load_base(folder)[0], torch.bfloat16, "4bit") == taken


@pytest.mark.parametrize(
    "words,sentence",
    [
        (("rwkv-bone",), "rwkv-bone names no base: pass --base"),
        (("opt-125m", "--base", "opt-350m"), "two models, opt-125m and opt-350m"),
        (("--base", "opt-125m", "--r", "8", "--strategy", "fsdp2"), "leave --strategy out"),
        (("--base", "opt-125m", "--continue-from", "runs/x"), "bone inspect tells its size"),
        (("--base", "opt-125m", "--set", "training.max_length=null"), "say how long by --length"),
        (("--base", "opt-125m", "--set", "adapter.layers_to_transform=[99]"), "do not fit the model"),
        (("nowhere.yaml",), "There is no recipe 'nowhere.yaml'"),
    ],
)
def test_what_cannot_be_estimated_is_one_sentence(words, sentence):
    done = estimate(*words, "--no-memory")
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
