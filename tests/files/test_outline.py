"""Configs of strangers: sound ones of every architecture are followed, absurd ones refused while they are small."""

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bone_peft import BoneError
from bone_peft.files.checkpoints import bounded, open_checkpoint
from bone_peft.files.checkpoints.outline import load_config, outline, parts
from bone_peft.files.merging import merge

from ..models import config_for, gpt2, llama, randomize, tokens
from .test_ties import lfm2, write_gguf


def save(model, folder: Path, **changes) -> Path:
    """A model folder whose config says something else."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


ARCHITECTURES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(CONFIG_MAPPING))
# `make check-all` takes all of them.
ARCHITECTURES = ARCHITECTURES if os.environ.get("ALL_ARCHITECTURES") else ARCHITECTURES[::6]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_at_its_own_size(model_type):
    """As many modules as its tensors allow, for whatever Transformers itself can build."""
    try:
        config = AutoConfig.for_model(model_type)
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        pytest.skip(f"Transformers does not build its own default ({type(error).__name__})")
    shapes = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    settings = json.loads(config.to_json_string(use_diff=False))
    stored = parts(sum(1 for _ in plain.parameters()))
    loaded = load_config(settings, "config.json", "CAUSAL_LM", stored)
    found = outline(loaded, "CAUSAL_LM", stored)
    assert {name: tuple(tensor.shape) for name, tensor in found.state_dict().items()} == shapes


@pytest.mark.parametrize("model", [lfm2, gpt2])
def test_numbers_that_are_no_counts_of_layers(tmp_path, model):
    """LFM2's ``block_multiple_of`` is 256, and its weights are 20 tensors."""
    model().save_pretrained(tmp_path / "base")
    targets = ["q_proj", "w1"] if model is lfm2 else ["c_attn"]
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config_for("bone", target_modules=targets)
    )
    live = randomize(tuned).eval()
    live.save_pretrained(tmp_path / "adapter")
    merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    x = tokens()
    torch.testing.assert_close(got(x).logits, live(x).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_position_embeddings": 10_485_760},
        {"rope_theta": 10_000_000_000, "rope_parameters": None},
        {"layer_norm_block_depth_of_something": 2**62},
    ],
)
def test_large_numbers_that_build_nothing(tmp_path, changes):
    base = save(llama(), tmp_path / "base", **changes)
    config = config_for("bone", target_modules=["q_proj"])
    live = randomize(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)).eval()
    live.save_pretrained(tmp_path / "adapter")
    merge(str(base), tmp_path / "adapter", tmp_path / "out")
    got = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in got.state_dict().items())
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize("count", [3, 100, 5000, 2**20, 2**31, 2**70])
@pytest.mark.parametrize("model,field", [(llama, "num_hidden_layers"), (gpt2, "n_layer"), (lfm2, "num_hidden_layers")])
def test_more_layers_than_the_weights_have(tmp_path, model, field, count):
    base = save(model(), tmp_path / "base", **{field: count})
    before, start = peak(), time.process_time()
    with pytest.raises(BoneError) as caught:
        _ = open_checkpoint(str(base)).tensors
    assert time.process_time() - start < 30 and peak() - before < 512 * 2**20
    assert str(base) in str(caught.value) and "\n" not in str(caught.value)
    if count > 2**20:
        assert f"{field}={count}" in str(caught.value)


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"vocab_size": 2**40}, {"intermediate_size": 2**63}])
def test_sizes_that_the_weights_do_not_have(tmp_path, changes):
    base = save(llama(), tmp_path / "base", **changes)
    with pytest.raises(BoneError, match="shape"):
        _ = open_checkpoint(str(base)).tensors


LISTS = {
    "qwen2": "num_hidden_layers",
    "gemma3_text": "num_hidden_layers",
    "granitemoehybrid": "num_hidden_layers",
    "modernbert-decoder": "num_hidden_layers",
    "smollm3": "num_hidden_layers",
    "mixtral": "num_local_experts",
    "xlm": "n_layers",
    "mpt": "n_layers",
}


@pytest.mark.parametrize("model_type,field", LISTS.items())
def test_lists_of_a_config_itself(model_type, field):
    """Most configs make lists of so many entries; experts may be one tensor however many there are."""
    settings = json.loads(AutoConfig.for_model(model_type).to_json_string(use_diff=False)) | {field: 2**31}
    settings = {name: value for name, value in settings.items() if not isinstance(value, list)}
    before, start = peak(), time.process_time()
    try:
        outline(load_config(settings, "config.json", "CAUSAL_LM", 10_000), "CAUSAL_LM", 10_000)
    except BoneError as error:
        assert "\n" not in str(error)
    assert time.process_time() - start < 60 and peak() - before < 512 * 2**20


def test_loops_in_lists_of_a_config(monkeypatch):
    """GPT-Neo's layer types, by a list that repeats them."""
    monkeypatch.setattr(bounded, "SECONDS", 1)
    settings = {"model_type": "gpt_neo", "attention_types": [[["global", "local"], 2**40]] * 1000, "num_layers": 12}
    before = peak()
    with pytest.raises(BoneError, match=r"seconds|MiB"):
        load_config(settings, "config.json", "CAUSAL_LM", 10_000)
    assert peak() - before < 2 * bounded.BYTES


def test_a_gguf_file_of_too_many_layers(tmp_path, monkeypatch):
    honest = GGUFWriter.add_block_count
    monkeypatch.setattr(GGUFWriter, "add_block_count", lambda writer, _: honest(writer, 2**31))
    write_gguf(tmp_path / "base.gguf")
    with pytest.raises(BoneError, match="num_hidden_layers=2147483648"):
        _ = open_checkpoint(str(tmp_path / "base.gguf")).tensors


def test_code_beside_a_config_is_not_run(tmp_path):
    base = save(
        llama(), tmp_path / "base", model_type="strange", auto_map={"AutoConfig": "configuration_strange.StrangeConfig"}
    )
    (base / "configuration_strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "lm_head.weight" in open_checkpoint(str(base)).tensors
    assert not (tmp_path / "ran").exists()


class TestBounded:
    def refused(self, work, match, **limits):
        before = set(threading.enumerate())
        with pytest.raises(BoneError, match=match):
            bounded.bounded(work, "It", **limits)
        for thread in set(threading.enumerate()) - before:
            thread.join(60)  # It gives back its memory first.
            assert not thread.is_alive()

    def test_results_and_errors_come_through(self):
        assert bounded.bounded(lambda: 3, "It") == 3
        with pytest.raises(ZeroDivisionError):
            bounded.bounded(lambda: 1 / 0, "It")

    @pytest.mark.parametrize(
        "work",
        [
            lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9)),
            lambda: nn.Sequential(*[nn.Sequential(nn.ReLU()) for _ in range(10**9)]),
            lambda: nn.ParameterList(nn.Parameter(torch.empty(1)) for _ in range(10**9)),
        ],
    )
    def test_modules_and_parameters(self, work):
        self.refused(work, "100 modules", parts=100)
        # And what is built later is not counted.
        nn.ModuleList(nn.Linear(1, 1) for _ in range(200))

    def test_modules_of_other_threads_do_not_count(self):
        def work():
            other = threading.Thread(target=lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(200)))
            other.start()
            other.join()
            return nn.Linear(1, 1)

        assert bounded.bounded(work, "It", 10).in_features == 1

    def test_loops_that_build_nothing(self, monkeypatch):
        monkeypatch.setattr(bounded, "SECONDS", 0.2)
        self.refused(lambda: sum(i for i in range(10**12)), "0.2 seconds")

    def test_lists_that_grow(self, monkeypatch):
        monkeypatch.setattr(bounded, "BYTES", 64 * 2**20)
        before = peak()
        # Above what this process ever held. Written, as zeros are not held until then.
        held = b"1" * max(0, before - 2**20)
        self.refused(lambda: [[i] for i in range(10**10)], "64 MiB", seconds=60)
        assert peak() - before < len(held) + 512 * 2**20
