"""Bad input: one sentence, exit code 2, and nothing lost or half-written."""

import json
import shutil

import pytest

from ..runs.tiny import make_base
from .test_commands import bone


@pytest.fixture(scope="module")
def adapter(plain_base, rows_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    trained = bone(
        *("train", "--base", plain_base, "--data", rows_file, "--fields", "query", "response", "--out", out),
        *("--r", 8, "--steps", 1, "--target-modules", "q_proj,v_proj"),
    )
    assert trained.exit_code == 0, trained.output
    return out / "adapter"


def refused(done, *words):
    sentence = done.stderr.strip()
    assert done.exit_code == 2, done.output
    assert len(sentence.splitlines()) == 1, sentence
    assert "Traceback" not in done.output
    for word in words:
        assert word in sentence, sentence


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--r", 0], ["r", "0"]),
        (["--r", -4], ["r", "-4"]),
        (["--r", 7, "--init-weights", "bat"], ["7"]),
        (["--bottleneck-size", 0], ["bottleneck_size", "0"]),
        (["--r", 8, "--bottleneck-size", 4], ["bottleneck"]),
        (["--target-modules", "nothing_here"], ["nothing_here"]),
        (["--fields", "question", "answer"], ["question", "query, response", "--fields"]),
        (["--init-weights", "bet"], ["init_weights", "bet"]),
        (["--set", "adapter.rr=8"], ["adapter.rr", "adapter.r"]),
        (["--set", "training.learning_rte=1"], ["training.learning_rate"]),
        (["--set", "novalue"], ["--set", "="]),
        (["--data", "none.jsonl"], ["none.jsonl"]),
        (["--data", "gym:chain_sun"], ["chain_sum"]),
        (["--base", "./no/such/base"], ["./no/such/base"]),
        (["--base", "none.gguf"], ["none.gguf"]),
        (["--base", "package:no_such_package"], ["no_such_package", "pip install"]),
        (["--chat"], ["chat template"]),
        (["--quantize", "3bit"], ["3bit"]),
    ],
)
def test_train_refuses(plain_base, rows_file, tmp_path, flags, words):
    out = tmp_path / "run"
    base = ["--base", plain_base, "--data", rows_file, "--fields", "query", "response"]
    refused(bone("train", *base, "--steps", 1, "--out", out, *flags), *words)
    assert not (out / "adapter").exists()
    # Nothing is in the way of the next try.
    assert not (out / "recipe.yaml").exists()


@pytest.mark.parametrize("missing", ["--base", "--data"])
def test_train_needs_base_and_data(plain_base, rows_file, missing):
    given = {"--base": plain_base, "--data": rows_file}
    del given[missing]
    refused(bone("train", *[word for pair in given.items() for word in pair]), missing)


def test_empty_data(plain_base, tmp_path):
    (tmp_path / "none.jsonl").touch()
    refused(bone("train", "--base", plain_base, "--data", tmp_path / "none.jsonl", "--out", tmp_path / "o"), "empty")
    refused(bone("eval", "--base", plain_base, "--data", tmp_path / "none.jsonl"), "empty")


def test_a_base_without_a_tokenizer(plain_base, tmp_path):
    copy = shutil.copytree(plain_base, tmp_path / "mute")
    for file in copy.glob("*token*"):
        file.unlink()
    refused(bone("generate", "--base", copy, "2+2="), "holds no tokenizer")


def copy_of(adapter, folder):
    return shutil.copytree(adapter, folder / "copy")


def truncate(copy):
    file = copy / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "adapter_model.safetensors"


def foreign(copy):
    (copy / "adapter_model.safetensors").write_bytes(b"PK\x03\x04 not a safetensors file")
    return "adapter_model.safetensors"


def no_config(copy):
    (copy / "adapter_config.json").unlink()
    return "adapter_config.json"


def broken_config(copy):
    (copy / "adapter_config.json").write_text('{"peft_type": "BONE", "r": ')
    return str(copy)


def unknown_type(copy):
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "NONSUCH"}))
    return str(copy)


@pytest.mark.parametrize("damage", [truncate, foreign, no_config, broken_config, unknown_type])
@pytest.mark.parametrize("command", ["eval", "merge", "generate"])
def test_a_damaged_adapter(command, damage, adapter, plain_base, rows_file, tmp_path):
    copy = copy_of(adapter, tmp_path)
    names = damage(copy)
    out = tmp_path / "merged"
    more = {
        "eval": ["--data", rows_file, "--fields", "query", "response"],
        "merge": ["--out", out],
        "generate": ["2+2="],
    }[command]
    refused(bone(command, "--base", plain_base, "--adapter", copy, *more), names)
    assert not out.exists()
    assert not list(tmp_path.glob(".merged*"))


@pytest.mark.parametrize("command", ["eval", "merge", "generate"])
def test_an_adapter_of_another_architecture(command, adapter, rows_file, tmp_path):
    other = make_base(tmp_path / "other", chat=False, hidden=64)
    out = tmp_path / "merged"
    more = {
        "eval": ["--data", rows_file, "--fields", "query", "response"],
        "merge": ["--out", out],
        "generate": ["2+2="],
    }[command]
    refused(bone(command, "--base", other, "--adapter", adapter, *more), str(adapter))
    assert not out.exists()


def test_merge_does_not_replace_unasked(adapter, plain_base, tmp_path):
    out = tmp_path / "merged"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    command = ("merge", "--base", plain_base, "--adapter", adapter, "--out", out)
    for force, says in (([], "--force"), (["--force"], "mine.txt")):
        refused(bone(*command, *force), says)
        assert (out / "mine.txt").read_text() == "keep"
    (out / "mine.txt").unlink()
    refused(bone(*command), "--force")  # An empty folder may be somebody's, too.
    out.rmdir()
    assert bone(*command).exit_code == 0
    refused(bone(*command), "--force")
    assert bone(*command, "--force").exit_code == 0


def test_a_model_folder_that_is_an_adapter(adapter):
    refused(bone("generate", "--base", adapter, "hello"), "--adapter")


def test_eval_needs_something_to_score(adapter, rows_file, tmp_path):
    refused(bone("eval", "--data", rows_file), "nothing to score")
    nameless = shutil.copytree(adapter, tmp_path / "nameless")
    config = json.loads((nameless / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (nameless / "adapter_config.json").write_text(json.dumps(config))
    refused(bone("eval", "--data", rows_file, "--adapter", nameless), "name the base with --base")


def test_an_empty_prompt(plain_base):
    refused(bone("generate", "--base", plain_base, input=""), "empty")
