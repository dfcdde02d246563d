"""Model folders of strangers, loaded to be trained or asked."""

import json
import time

import pytest
from transformers import AutoConfig

from bone_peft import BoneError, load_base
from bone_peft.files.checkpoints import bounded
from bone_peft.files.checkpoints.outline import load_config

from ..cli.test_commands import bone
from ..runs.tiny import make_base

ABSURD = [
    {"num_hidden_layers": 2**31},
    {"hidden_size": 2**31},
    {"vocab_size": 2**40},
    {"intermediate_size": 2**63},
    {"num_attention_heads": 2**31},
    {"num_attention_heads": 0},
    {"head_dim": 2**31},
    {"model_type": "t5"},
    {"model_type": "x" * 10_000},
    {"dtype": "os"},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}, "vocab_size": 2**40},
    {"quantization_config": 5},
    {"rope_parameters": {"rope_type": [1]}},
]


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("honest") / "base", chat=False)


@pytest.mark.parametrize("changes", ABSURD, ids=lambda changes: json.dumps(changes)[:60])
def test_absurd_configs(honest, changes):
    file = honest / "config.json"
    before = file.read_text()
    start = time.process_time()
    try:
        file.write_text(json.dumps(json.loads(before) | changes))
        with pytest.raises(BoneError) as caught:
            load_base(str(honest))
    finally:
        file.write_text(before)
    assert time.process_time() - start < 10
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_tokenizer_of_billions_of_tokens(honest):
    file = honest / "tokenizer_config.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(before) | {"tokenizer_class": "T5Tokenizer", "extra_ids": 2**31}))
        with pytest.raises(BoneError, match="extra_ids 2,147,483,648"):
            load_base(str(honest))
    finally:
        file.write_text(before)


@pytest.mark.parametrize("model_type", ["jamba", "falcon_h1", "gemma4"])
def test_layer_types_of_a_million_layers(model_type, monkeypatch):
    """Their configs make lists of as many entries, and their models ask for each."""
    monkeypatch.setattr(bounded, "SECONDS", 1)
    settings = json.loads(AutoConfig.for_model(model_type).to_json_string(use_diff=False))
    inner = settings.get("text_config") or settings
    inner["num_hidden_layers"] = 2**31
    start = time.process_time()
    with pytest.raises(BoneError):
        load_config(settings, "config.json", "CAUSAL_LM", 10_000)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "null", ""])
def test_files_that_are_no_json(honest, name, content):
    file = honest / name
    before = file.read_text()
    try:
        file.write_text(content)
        if name == "generation_config.json" or (name, content) == ("tokenizer_config.json", "null"):
            try:
                load_base(str(honest))
            except BoneError as error:
                assert "\n" not in str(error)
        else:
            with pytest.raises(BoneError) as caught:
                load_base(str(honest))
            assert "\n" not in str(caught.value)
    finally:
        file.write_text(before)


def test_texts_of_millions_of_characters(honest, tmp_path):
    row = tmp_path / "rows.jsonl"
    row.write_text(json.dumps({"query": "x" * 10**7, "response": "y"}) + "\n")
    for words in (
        ["eval", "--base", honest, "--data", row, "--fields", "query", "response"],
        ["generate", "--base", honest, "x" * 10**6],
    ):
        start = time.process_time()
        done = bone(*words)
        assert done.exit_code == 2 and "made for 128 tokens" in done.stderr
        assert time.process_time() - start < 10
