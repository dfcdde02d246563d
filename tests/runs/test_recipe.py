"""Recipes: YAML in and out, refused keys, the shipped ones."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from bone_peft import BoneConfig
from bone_peft.errors import BoneError
from bone_peft.runs import recipes
from bone_peft.runs.training import Recipe
from bone_peft.runs.training.methods.sft import Sft
from bone_peft.runs.training.recipe import parse_value


def test_a_recipe_survives_its_yaml(tmp_path):
    recipe = Recipe().with_values(
        {"base": "b", "data": "d", "fields": ["q", "a"], "adapter.r": 8, "training.learning_rate": 2e-5}
    )
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_scientific_notation_is_a_number(tmp_path):
    (tmp_path / "r.yaml").write_text("training:\n  learning_rate: 2e-5\n", encoding="utf-8")
    assert Recipe.load(tmp_path / "r.yaml").training["learning_rate"] == 2e-5
    assert parse_value("1e-4") == 1e-4
    assert parse_value("bat") == "bat"
    assert parse_value("true") is True


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("basis: x", "'basis'.*did you mean 'base'"),
        ("adapter: 3", "adapter .* must hold"),
        ("fields: [one]", "fields .* two columns"),
        ("seed: -1", "seed"),
        ("chat: maybe", "chat"),
        ("- a", "no recipe"),
        ("a: [", "not YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, text, says):
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BoneError, match=says) as error:
        Recipe.load(tmp_path / "r.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"adapter.target_module": ["q"]}, "adapter.target_modules"),
        ({"training.learning_rat": 1}, "training.learning_rate"),
        ({"training.output_dir": "x"}, "training.output_dir .* out"),
        ({"base": ""}, "no base"),
    ],
)
def test_unknown_keys_name_the_nearest(values, says):
    with pytest.raises(BoneError, match=says):
        Recipe(base="b", data="d").with_values(values).checked()


def test_there_is_no_such_recipe():
    with pytest.raises(BoneError, match="metamath-bone"):
        Recipe.load("metamat")


@pytest.mark.parametrize("name", recipes.names())
def test_shipped_recipes_are_valid(name, tmp_path):
    from trl import SFTConfig

    recipe = Recipe.load(name)
    # RWKV's recipes leave base and data to the command line.
    recipe = recipe.with_values({"base": recipe.base or "model.pth", "data": recipe.data or "data.jsonl"}).checked()
    BoneConfig(**recipe.adapter)
    SFTConfig(output_dir=str(tmp_path), report_to="none", **recipe.training)


@pytest.mark.parametrize(("name", "init_weights"), [("metamath-bone", True), ("metamath-bat", "bat")])
def test_metamath_has_the_papers_settings(name, init_weights):
    recipe = Recipe.load(name)
    training = recipe.training
    config = BoneConfig(**recipe.adapter)
    assert (config.r, config.init_weights, len(config.target_modules)) == (64, init_weights, 7)
    assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 128
    assert (training["learning_rate"], training["lr_scheduler_type"], training["max_length"]) == (2e-5, "cosine", 512)
    assert (recipe.fields, recipe.dtype) == (["query", "response"], "bfloat16")


@pytest.mark.parametrize(
    "package, name, oldest, installed",
    [("trl", "TRL", "1.16", "0.24.0"), ("transformers", "Transformers", "5.3", "5.2.0")],
)
def test_an_older_trainer_is_said_first(monkeypatch, package, name, oldest, installed):
    """On Transformers before 5.3 a run would not hear of its numbers."""
    monkeypatch.setattr(importlib.import_module(package), "__version__", installed)
    with pytest.raises(BoneError, match=f"^Training needs {name} {oldest} or newer, and {installed} is installed: pip"):
        Recipe(base="b", data="d").checked()


@pytest.mark.parametrize(
    ("key", "says"), [("lora_alpha", "no scale"), ("lora_r", r"adapter\.r"), ("lora_dropout", "bone_dropout")]
)
def test_words_of_lora_are_known(key, says):
    with pytest.raises(BoneError, match=rf"adapter\.{key} is LoRA's: .*{says}"):
        Recipe(base="x", data="y", out="z", adapter={key: 16}).checked()


@pytest.mark.parametrize("key", ["adapter.peft_type", "adapter.revision", "training.output_dir", "training.report_to"])
def test_what_a_run_decides_is_said_in_a_whole_sentence(key):
    plan = Recipe(base="b", data="d", out="o").with_values({key: "x"})
    with pytest.raises(BoneError, match=rf"^{key} is the run's own to decide: (it|name) [\w ,()-]+\.$"):
        plan.checked()


@pytest.mark.parametrize(
    ("adapter", "variant"),
    [
        ({}, "bone"),
        ({"init_weights": "bat"}, "bat"),
        ({"init_weights": "bat", "share": "input"}, "bat-input"),
        ({"bottleneck_size": 8}, "bottleneck"),
    ],
)
def test_what_is_not_said_is_what_the_study_supports(adapter, variant):
    recipe = Recipe(base="b", data="d", adapter=adapter)
    training = recipe.checked().training
    assert recipe.checked().adapter == {**adapter, "target_modules": "all-linear"}
    assert training["learning_rate"] == Sft().usual(variant)["learning_rate"]
    assert (training["lr_scheduler_type"], training["per_device_train_batch_size"]) == ("cosine", 16)
    assert recipe.checked().checked() == recipe.checked()
    said = {"learning_rate": 1e-5, "lr_scheduler_type": "linear", "warmup_steps": 0}
    training = dataclasses.replace(recipe, training=said).checked().training
    assert said.items() <= training.items()


def test_learning_rates_are_between_those_that_did_best_in_the_studies():
    studies = Path(__file__).parents[2] / "benchmarks"
    for variant in ("bone", "bat"):
        lines = [
            line
            for study in ("sums", "gsm-symbolic", "gsm8k")
            for line in json.loads((studies / f"study-{study}.json").read_text())["summary"]
            if line["method"] == variant
        ]
        best = [line["rate"] for line in lines]
        assert len(best) == 3 and min(best) < Sft().usual(variant)["learning_rate"] < max(best)


def test_other_defaults_are_not_those_of_answers():
    pairs = Recipe(base="b", data="d", method="dpo").checked()
    assert not {"learning_rate", "lr_scheduler_type"} & pairs.training.keys()
    for some in ({"target_parameters": ["mlp.experts.down_proj"]}, {"layers_to_transform": [0]}):
        assert Recipe(base="b", data="d", adapter=some).checked().adapter == some
    assert Recipe(base="b", data="d", continue_from="runs/x").checked().adapter == {}


@pytest.mark.parametrize("name", [name for name in recipes.names() if name != "demo"])
def test_the_papers_recipes_say_all_of_it(name):
    said = Recipe.load(name)
    assert {"learning_rate", "lr_scheduler_type", "per_device_train_batch_size"} <= said.training.keys()
    assert "target_modules" in said.adapter
