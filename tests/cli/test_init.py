"""``bone init``: a recipe for one's own base and rows, which runs as it is."""

import dataclasses

import pytest
import yaml

from bone_peft import BoneConfig
from bone_peft.runs.training import Recipe
from bone_peft.runs.training.first_recipe import _OF_THE_ADAPTER, _OF_THE_RUN

from ..runs.tiny import sums, write_rows
from .test_commands import bone


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A folder with rows, in which one works."""
    monkeypatch.chdir(tmp_path)
    return write_rows(tmp_path / "rows.jsonl", sums(24)).name


def test_the_recipe_trains_unchanged(plain_base, rows, tmp_path):
    done = bone("init", "--base", plain_base, "--data", rows, "--fields", "query", "response", "--out", "my.yaml")
    assert done.exit_code == 0, done.output
    before = (tmp_path / "my.yaml").read_bytes()
    trained = bone("train", "my.yaml")
    assert trained.exit_code == 0, trained.output
    assert (tmp_path / "runs" / "my" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "my.yaml").read_bytes() == before
    ran = Recipe.load(tmp_path / "runs" / "my" / "recipe.yaml")
    assert (ran.eval_split, ran.chat, ran.adapter["target_modules"]) == (True, False, "all-linear")


def test_it_says_what_it_found_and_every_key(chat_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chats = [{"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "!"}]} for i in "ab"]
    write_rows(tmp_path / "chats.jsonl", chats)
    assert bone("init", "--base", chat_base, "--data", "chats.jsonl").exit_code == 0
    text = (tmp_path / "bone.yaml").read_text()
    assert "chats.jsonl: 2 rows, chats, in columns messages." in text
    assert "has a chat template" in text
    assert "all-linear are 14 layers of this base: q_proj, k_proj," in text
    for key in (f.name for section in (Recipe, BoneConfig) for f in dataclasses.fields(section)):
        if key in _OF_THE_RUN or key in _OF_THE_ADAPTER:
            assert f"\n# {key}:" in text or f"{key}: " in text
    found = yaml.safe_load(text)
    assert found["eval_split"] is False  # two rows are too few
    assert found["adapter"] == {"r": 64, "init_weights": True, "target_modules": "all-linear", "bone_dropout": 0.0}
    assert "early_stopping, context_chunk" in text and "share, bottleneck_size" in text


def test_values_are_those_of_a_run_that_names_none(plain_base, rows):
    bone("init", "--base", plain_base, "--data", rows, "--fields", "query", "response")
    written, plain = Recipe.load("bone.yaml"), Recipe(base=plain_base, data=rows)
    from trl import SFTConfig

    usual = {field.name: field.default for field in dataclasses.fields(SFTConfig)} | plain.checked().training
    assert {key: getattr(usual[key], "value", usual[key]) for key in written.training} == written.training
    assert written.adapter["target_modules"] == plain.checked().adapter["target_modules"]
    for key in ("dtype", "quantize", "keep", "train_on", "seed", "out"):
        assert getattr(written, key) == getattr(plain, key)


def test_what_is_wrong_with_the_rows_shows_at_once(plain_base, rows, tmp_path):
    done = bone("init", "--base", plain_base, "--data", rows)
    assert done.exit_code == 2
    assert "it has query, response: name two of them with --fields" in done.stderr
    assert not (tmp_path / "bone.yaml").exists()


def test_only_what_it_began_is_written_over(plain_base, rows, tmp_path):
    words = ("init", "--base", plain_base, "--data", rows, "--fields", "query", "response")
    mine = tmp_path / "bone.yaml"
    mine.write_text("base: mine\n")
    for more, sentence in (((), "pass --force"), (("--force",), "is not a file that this command wrote")):
        done = bone(*words, *more)
        assert done.exit_code == 2 and sentence in done.stderr
        assert mine.read_text() == "base: mine\n"
    mine.unlink()
    assert bone(*words).exit_code == 0
    assert bone(*words).exit_code == 2
    assert bone(*words, "--force").exit_code == 0
    assert bone(*words, "--out", "rows.jsonl", "--force").exit_code == 2
