"""The merge that streams gives what ``merge_and_unload()`` gives, bit for bit."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bone_peft import BoneError, BoneLayer
from bone_peft.files.checkpoints import checkpoint, rewrite
from bone_peft.files.checkpoints.checkpoint import Edit, Held
from bone_peft.files.merging import merge
from bone_peft.io.ours import MANIFEST
from bone_peft.method.variants import VARIANTS

from ..models import ALL_VARIANTS, config_for, gpt2, llama, opt, randomize, tokens

CONV1D = {"target_modules": ["c_attn", "c_proj", "c_fc"]}


def saved(model, folder: Path, dtype=torch.bfloat16, **kwargs) -> Path:
    model.to(dtype).save_pretrained(folder, **kwargs)
    return folder


def adapter(model, folder: Path, config) -> Path:
    tuned = randomize(get_peft_model(model, config))
    for name, parameter in tuned.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter)
    tuned.save_pretrained(folder)
    return folder


def in_memory(base: Path, adapter: Path, auto=AutoModelForCausalLM, **kwargs):
    return PeftModel.from_pretrained(
        auto.from_pretrained(base, **{"dtype": "auto", **kwargs}), adapter
    ).merge_and_unload()


def assert_same(want, got) -> None:
    want, got = want.state_dict(), got.state_dict()
    assert set(want) == set(got)
    assert [
        name for name in want if not torch.equal(want[name], got[name]) or want[name].dtype != got[name].dtype
    ] == []


def check(tmp_path, model, config, dtype=torch.bfloat16, **kwargs) -> Path:
    base = saved(model, tmp_path / "base", dtype, **kwargs)
    merge(str(base), adapter(model, tmp_path / "adapter", config), tmp_path / "out")
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert_same(in_memory(base, tmp_path / "adapter"), got)
    return tmp_path / "out"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_every_variant(tmp_path, variant, dtype):
    check(tmp_path, llama(), config_for(variant), dtype)


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_weights_stored_the_other_way_round(tmp_path, variant):
    check(tmp_path, gpt2(), config_for(variant, **CONV1D))


def test_shards_ragged_blocks_and_a_rank_pattern(tmp_path):
    config = config_for("bone", r=5, rank_pattern={"q_proj": 3})
    out = check(tmp_path, llama(tie_word_embeddings=True), config, max_shard_size="20KB")
    names = [path.name for path in sorted(out.iterdir()) if path.name != MANIFEST]
    assert names == [path.name for path in sorted((tmp_path / "base").iterdir())] and len(names) > 4
    for name in ("config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


@pytest.mark.parametrize("options", [{"bias": "all"}, {"bias": "bone_only"}, {"modules_to_save": ["fc1"]}])
def test_what_is_trained_beside_the_adapter(tmp_path, options):
    model = opt()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter)
    check(tmp_path, model, config_for("bone", target_modules=["q_proj", "v_proj"], **options))


def test_names_without_the_models_prefix(tmp_path):
    base = saved(gpt2(), tmp_path / "base")
    stored = load_file(base / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    assert set(bare) != set(stored)
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    merge(str(base), adapter(gpt2(), tmp_path / "adapter", config_for("bone", **CONV1D)), tmp_path / "out")
    assert_same(
        in_memory(base, tmp_path / "adapter"), AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    )


@pytest.mark.parametrize("shards,shared", [(1, False), (3, False), (1, True)])
def test_bin_files(tmp_path, shards, shared):
    base = saved(llama(tie_word_embeddings=shared), tmp_path / "base")
    _to_bin(base, shards, shared)
    merge(str(base), adapter(llama(), tmp_path / "adapter", config_for("bat")), tmp_path / "out")
    for file in (tmp_path / "out").glob("*.bin"):
        assert zipfile.ZipFile(file).testzip() is None
        torch.load(file, weights_only=True, mmap=True)
    assert_same(
        in_memory(base, tmp_path / "adapter"), AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    )


def _to_bin(base: Path, shards: int, shared: bool) -> None:
    stored = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    if shared:
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    if shards == 1:
        torch.save(stored, base / "pytorch_model.bin")
        return
    weight_map = {}
    for index in range(shards):
        names = list(stored)[index::shards]
        file = f"pytorch_model-{index + 1:05}-of-{shards:05}.bin"
        torch.save({name: stored[name] for name in names}, base / file)
        weight_map |= dict.fromkeys(names, file)
    (base / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_several_adapters_with_weights(tmp_path):
    base = saved(llama(), tmp_path / "base")
    weights = {"bone": 0.5, "bat": 0.3, "bottleneck": -1.1}
    paths = [adapter(llama(), tmp_path / name, config_for(name)) for name in weights]
    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"), paths[0], adapter_name="bone"
    )
    for name in ("bat", "bottleneck"):
        tuned.load_adapter(tmp_path / name, name)
    for layer in tuned.modules():
        if isinstance(layer, BoneLayer):
            for name, weight in weights.items():
                layer.set_scale(name, weight)
    merge(str(base), paths, tmp_path / "out", weights=list(weights.values()))
    want = tuned.merge_and_unload(adapter_names=list(weights))
    assert_same(want, AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto"))


@pytest.mark.parametrize("bins", [0, 1, 2])
def test_a_classifier_brings_its_head(tmp_path, bins):
    base = saved(llama(), tmp_path / "base")
    if bins:
        _to_bin(base, bins, shared=False)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    merge(str(base), adapter(model, tmp_path / "adapter", config_for("bone", task_type="SEQ_CLS")), tmp_path / "out")
    want = in_memory(base, tmp_path / "adapter", AutoModelForSequenceClassification, num_labels=3)
    assert_same(want, AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype="auto"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_one_side_of_a_tie_trained_whole(tmp_path, module, tied):
    model = llama(tie_word_embeddings=tied)
    check(tmp_path, model, config_for("bone", modules_to_save=[module]))


def test_an_adapted_tied_head_leaves_the_embedding_alone(tmp_path):
    """PEFT merges into both, and so changes the model; the function that was trained is what counts."""
    base = saved(llama(tie_word_embeddings=True), tmp_path / "base", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base)
    path = adapter(model, tmp_path / "adapter", config_for("bone", target_modules=["lm_head", "q_proj"]))
    x = tokens()
    want = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), path).eval()(x).logits
    merge(str(base), path, tmp_path / "out")
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")(x).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bone", "bat"])
def test_rwkv_files_as_its_own_script_merges_them(tmp_path, fixtures, kind):
    """Bit for bit for Bone. Bat is one rounding of float32 here and several of bfloat16 there: we are nearer."""
    folder = fixtures / "rwkv-peft" / kind
    merge(str(folder / "base.pth"), folder / "adapter.pth", tmp_path / "out.pth")
    ours, theirs, base, blocks = (
        torch.load(path, weights_only=True)
        for path in (tmp_path / "out.pth", folder / "merged.pth", folder / "base.pth", folder / "adapter.pth")
    )
    assert list(ours) == list(theirs) == list(base)
    variant = VARIANTS["bone" if kind == "bone" else "bat-input"]
    off = {"ours": 0.0, "theirs": 0.0}
    for name, weight in base.items():
        block = blocks.get(f"{name.removesuffix('.weight')}.disha")
        if block is None:
            assert torch.equal(ours[name], weight)
            continue
        exact = weight.double() + variant.delta_weight({"bone_block": block.double()}, weight.double())
        off["ours"] = max(off["ours"], (ours[name] - exact).abs().max().item())
        off["theirs"] = max(off["theirs"], (theirs[name] - exact).abs().max().item())
        if kind == "bone":
            assert torch.equal(ours[name], theirs[name])
    assert off["ours"] <= off["theirs"]


def test_where_nobody_can_write_at_a_place(tmp_path, monkeypatch):
    """On Windows pieces are written one after the other."""
    monkeypatch.delattr(os, "pwrite", raising=False)
    monkeypatch.setattr(checkpoint, "CHUNK", 1)
    check(tmp_path, llama(), config_for("bone"))


@pytest.mark.parametrize("variant", ALL_VARIANTS)
@pytest.mark.parametrize("out_features,in_features,r", [(96, 64, 16), (640, 192, 32)])
def test_pieces_are_the_whole(monkeypatch, variant, out_features, in_features, r):
    weight = torch.randn(out_features, in_features).to(torch.bfloat16)
    shapes = VARIANTS[variant].shapes(in_features, out_features, r)
    edit = Edit([(VARIANTS[variant], {name: torch.randn(shape) for name, shape in shapes.items()})])
    whole = edit.whole(Held(weight))
    monkeypatch.setattr(checkpoint, "CHUNK", 1)
    pieces = list(edit.pieces(Held(weight)))
    assert len(pieces) == out_features // r
    assert torch.equal(torch.cat([piece() for piece in pieces]), whole)


def test_pieces_of_another_size_are_not_written_as_a_tensor(tmp_path):
    with open(tmp_path / "tensor", "wb") as file, pytest.raises(AssertionError, match="16 bytes have 12"):
        rewrite.write_pieces(file, [partial(torch.zeros, 2), partial(torch.zeros, 1)], 16, lambda count: None)


class TestRefusals:
    @pytest.fixture
    def base(self, tmp_path) -> Path:
        return saved(llama(), tmp_path / "base")

    def refused(self, tmp_path, base, *adapters, match: str, **kwargs) -> None:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(BoneError, match=match) as caught:
            merge(str(base), adapters, tmp_path / "out", **kwargs)
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize("after", [1, 20_000])
    def test_a_disk_that_fails_meanwhile(self, tmp_path, base, monkeypatch, after):
        one = adapter(llama(), tmp_path / "one", config_for("bone"))
        before = sorted(tmp_path.iterdir())

        def fail(file: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fdatasync", fail)
        monkeypatch.setattr(rewrite, "_SENT", after)
        with pytest.raises(OSError, match="Input/output error"):
            merge(str(base), one, tmp_path / "out")
        assert sorted(tmp_path.iterdir()) == before

    def test_another_base(self, tmp_path, base):
        wide = adapter(llama(hidden_size=64), tmp_path / "wide", config_for("bone"))
        self.refused(tmp_path, base, wide, match="does not fit this base")
        deep = adapter(llama(num_hidden_layers=3), tmp_path / "deep", config_for("bone"))
        self.refused(tmp_path, base, deep, match="no linear layer")

    def test_incomplete(self, tmp_path, base):
        path = adapter(llama(), tmp_path / "adapter", config_for("bone"))
        stored = load_file(path / "adapter_model.safetensors")
        save_file(dict(list(stored.items())[1:]), path / "adapter_model.safetensors")
        self.refused(tmp_path, base, path, match="incomplete")

    def test_nan(self, tmp_path, base):
        path = adapter(llama(), tmp_path / "adapter", config_for("bone"))
        stored = load_file(path / "adapter_model.safetensors")
        next(iter(stored.values()))[0, 0] = float("nan")
        save_file(stored, path / "adapter_model.safetensors")
        self.refused(tmp_path, base, path, match="NaN or infinity")

    def test_overflow(self, tmp_path):
        base = saved(llama(), tmp_path / "half", torch.float16)
        path = adapter(llama(), tmp_path / "adapter", config_for("bone"))
        self.refused(tmp_path, base, path, match="NaN or infinity", weights=[1e9])

    def test_no_room(self, tmp_path, base, monkeypatch):
        path = adapter(llama(), tmp_path / "adapter", config_for("bone"))
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        self.refused(tmp_path, base, path, match="free some")

    def test_something_there_already(self, tmp_path, base):
        path = adapter(llama(), tmp_path / "adapter", config_for("bone"))
        (tmp_path / "out").mkdir()
        self.refused(tmp_path, base, path, match="exists already")
        merge(str(base), path, tmp_path / "out", force=True)
        assert (tmp_path / "out" / "model.safetensors").is_file()

    def test_a_quantized_base(self, tmp_path, base):
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
        path = adapter(llama(), tmp_path / "adapter", config_for("bone"))
        self.refused(tmp_path, base, path, match="quantized")

    def test_an_index_that_points_elsewhere(self, tmp_path, base):
        path = adapter(llama(), tmp_path / "adapter", config_for("bone"))
        (base / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
        index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
        self.refused(tmp_path, base, path, match="no file of this folder")


_SLOWLY = """
import sys, time
from bone_peft.files.merging import merge

def progress(done, total):
    print("writing", flush=True)
    time.sleep(0.05)

merge(sys.argv[1], sys.argv[2], sys.argv[3], progress=progress)
"""


def test_a_kill_leaves_nothing_that_looks_whole(tmp_path):
    base = saved(llama(), tmp_path / "base", max_shard_size="20KB")
    path = adapter(llama(), tmp_path / "adapter", config_for("bone"))
    run = subprocess.Popen(
        [sys.executable, "-c", _SLOWLY, str(base), str(path), str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    for _ in range(12):
        assert run.stdout.readline() == "writing\n"
    time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "out").exists()
    left = [folder for folder in tmp_path.iterdir() if folder.name not in ("base", "adapter")]
    assert len(left) == 1 and left[0].name.endswith(".partial") and not (left[0] / "config.json").exists()
    merge(str(base), path, tmp_path / "out")
    assert_same(in_memory(base, path), AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto"))
