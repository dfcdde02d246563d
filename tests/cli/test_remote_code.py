"""Python code that comes with a base is run where the user said so, and nowhere else."""

import json

import pytest
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from bone_peft import BoneError, load_base
from bone_peft.files.merging import merge

from ..models import config_for, randomize
from ..runs.tiny import make_base
from .test_commands import bone

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({marker!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
MAP = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A base, and an adapter for it."""
    folder = tmp_path_factory.mktemp("plain")
    make_base(folder / "base", chat=False)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config_for("bone"))
    randomize(tuned).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code-was-run"


def with_code(folder, marker, *, tokenizer=False, **changes):
    """A base whose config, or whose tokenizer, asks for code beside it."""
    make_base(folder, chat=False)
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    file = folder / ("tokenizer_config.json" if tokenizer else "config.json")
    asked = {"auto_map": {"AutoTokenizer": [None, "code.OwnTokenizer"]}, "tokenizer_class": "OwnTokenizer"}
    file.write_text(json.dumps(json.loads(file.read_text()) | (asked if tokenizer else {"auto_map": MAP} | changes)))
    return folder


KINDS = [
    {"model_type": "own", "architectures": ["OwnModel"]},  # unknown to Transformers
    {"model_type": "vit", "architectures": ["OwnModel"]},  # known, and no language model
    {"tokenizer": True},
]


def commands(base, adapter, rows, out):
    loads = ["--data", rows, "--fields", "query", "response"]
    return {
        "generate": ["generate", "--base", base, "hello"],
        "eval": ["eval", "--base", base, *loads],
        "train": ["train", "--base", base, *loads, "--steps", 1, "--r", 8, "--target-modules", "q_proj", "--out", out],
        "estimate": ["estimate", base],
        "merge": ["merge", "--base", base, "--adapter", adapter, "--out", out],
        "convert": ["convert", adapter, "--to", "lora", "--base", base, "--out", out],
    }


@pytest.mark.parametrize("kind", KINDS, ids=["unknown", "known", "tokenizer"])
@pytest.mark.parametrize("command", ["generate", "eval", "train", "estimate", "merge", "convert"])
def test_it_is_not_run(plain, marker, rows_file, tmp_path, command, kind):
    base = with_code(tmp_path / "base", marker, **kind)
    words = commands(base, plain / "adapter", rows_file, tmp_path / "out")[command]
    done = bone(*words, input="y\ny\ny\n")
    assert not marker.exists()
    assert "[y/N]" not in done.output
    if command in ("generate", "eval", "train") or (command, kind) == ("estimate", KINDS[0]):
        assert done.exit_code == 2, done.output
        assert "--trust-remote-code" in done.stderr and len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "out" / "adapter").exists()
    else:  # by the names in the files, without the code; or refused
        assert done.exit_code in (0, 2), done.output


@pytest.mark.parametrize("command", ["generate", "eval", "train", "estimate", "merge", "convert"])
def test_it_is_run_when_the_user_says_so(plain, marker, rows_file, tmp_path, command):
    base = with_code(tmp_path / "base", marker, **KINDS[0])
    words = commands(base, plain / "adapter", rows_file, tmp_path / "out")[command]
    done = bone(*words, "--trust-remote-code")
    assert done.exit_code == 0, done.output
    assert marker.exists()


def test_a_recipe_may_say_so(marker, rows_file, tmp_path):
    base = with_code(tmp_path / "base", marker, **KINDS[0])
    recipe = {"base": str(base), "data": rows_file, "fields": ["query", "response"], "out": str(tmp_path / "out")}
    recipe |= {
        "trust_remote_code": True,
        "adapter": {"r": 8, "target_modules": ["q_proj"]},
        "training": {"max_steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert bone("train", tmp_path / "recipe.yaml").exit_code == 0
    assert marker.exists()
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe | {"trust_remote_code": "yes"}))
    done = bone("train", tmp_path / "recipe.yaml", "--force")
    assert done.exit_code == 2 and "trust_remote_code" in done.stderr


def test_merging_with_and_without_it_gives_the_same(plain, marker, tmp_path):
    base = with_code(tmp_path / "base", marker, **KINDS[0])
    for name, trust in (("blind", False), ("told", True)):
        merge(str(base), plain / "adapter", tmp_path / name, trust_remote_code=trust)
        assert marker.exists() is trust
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("blind", "told")]
    assert weights[0] == weights[1]


def test_a_base_that_an_adapter_names_is_not_trusted(plain, marker, tmp_path):
    base = with_code(tmp_path / "base", marker, **KINDS[0])
    file = plain / "adapter" / "adapter_config.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(before) | {"base_model_name_or_path": str(base)}))
        bone("convert", plain / "adapter", "--to", "lora", "--out", tmp_path / "out", "--trust-remote-code")
    finally:
        file.write_text(before)
    assert not marker.exists()


def test_code_that_is_not_needed_is_not_missed(marker, tmp_path):
    """The config names code for a model that Transformers has itself."""
    base = with_code(tmp_path / "base", marker)
    load_base(str(base))
    assert not marker.exists()
    with pytest.raises(BoneError, match="trust_remote_code"):
        load_base(str(with_code(tmp_path / "own", marker, **KINDS[0])))
