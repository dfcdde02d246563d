"""Adapters of experts in files: merged into what a checkpoint has, and handed to other programs."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from bone_peft import BoneError, convert, inspect_adapter
from bone_peft.files.conversion import adapter_of
from bone_peft.files.merging import merge

from ..method.tuner.test_separate_experts import two_blocks
from ..models import ALL_VARIANTS, SMALL, config_for, llama, randomize, tokens
from ..versions import needs
from .test_merging import adapter, assert_same, in_memory, saved

pytestmark = needs("transformers", "5.17")

OPTIONS = {**SMALL, "num_experts_per_tok": 2, "head_dim": 8}


def qwen():
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**OPTIONS, moe_intermediate_size=24, num_experts=4)).eval()


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**{**OPTIONS, "intermediate_size": 24}, num_local_experts=4)).eval()


def gpt_oss():
    return GptOssForCausalLM(GptOssConfig(**{**OPTIONS, "intermediate_size": 24}, num_local_experts=4)).eval()


MODELS = {"qwen": qwen, "mixtral": mixtral, "gpt_oss": gpt_oss}
models = pytest.mark.parametrize("model", MODELS)


@models
@pytest.mark.parametrize("variant", ALL_VARIANTS)
@pytest.mark.parametrize("experts", ["each", "shared"])
def test_merge(model, variant, experts, tmp_path):
    """The first two have a tensor for each matrix of each expert, the last has all experts in one."""
    base = saved(MODELS[model](), tmp_path / "base")
    live = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    config = config_for(variant, target_modules="all-linear", experts=experts)
    done = merge(str(base), adapter(live, tmp_path / "adapter", config), tmp_path / "out")
    assert_same(in_memory(base, tmp_path / "adapter"), AutoModelForCausalLM.from_pretrained(done.out, dtype="auto"))


@models
def test_nothing_but_the_experts_changes(model, tmp_path):
    base = saved(MODELS[model](), tmp_path / "base")
    live = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    folder = adapter(live, tmp_path / "adapter", config_for("bone", target_modules=["gate_up_proj"]))
    merge(str(base), folder, tmp_path / "out")
    old, new = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert old.keys() == new.keys() and changed
    assert all("experts" in name and "down" not in name and "w2" not in name for name in changed)


def old_files(folder, live):
    """The adapter as separate experts, by Mixtral's names of before Transformers 5."""
    layers = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        if ".experts." not in key:
            layers[key] = tensor
            continue
        start = key.rpartition(".experts.")[0].replace(".mlp", ".block_sparse_moe")
        for expert, own in enumerate(tensor):
            parts = zip(("w1", "w3"), own.chunk(2, -1), strict=True) if "gate_up" in key else [("w2", own)]
            layers |= {f"{start}.experts.{expert}.{part}.bone_block": t.contiguous() for part, t in parts}
    save_file(layers, folder / "adapter_model.safetensors")


def test_merge_of_separate_experts(tmp_path):
    base = saved(mixtral(), tmp_path / "base")
    live = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    config = config_for("bone", target_modules=["w1", "w2", "w3", "q_proj"])
    folder = adapter(live, tmp_path / "adapter", config)
    expected = in_memory(base, folder)
    old_files(folder, live)
    merge(str(base), folder, tmp_path / "out")
    assert_same(expected, AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto"))
    convert(folder, "bone", tmp_path / "new", base=str(base))
    assert_same(expected, in_memory(base, tmp_path / "new"))
    shown = inspect_adapter(folder)
    assert shown.targets == ["q_proj", "w1", "w2", "w3"] and shown.r == {8: 26}


@models
@pytest.mark.parametrize("variant", ["bone", "bottleneck"])
@pytest.mark.parametrize("experts", ["each", "shared"])
def test_lora_by_experts(model, variant, experts, tmp_path):
    """By the names that checkpoints have: PEFT's own LoRA puts these into the fused parameters, where it knows how."""
    base = saved(MODELS[model](), tmp_path / "base", torch.float32)
    live = AutoModelForCausalLM.from_pretrained(base)
    folder = adapter(live, tmp_path / "adapter", config_for(variant, target_modules="all-linear", experts=experts))
    done = convert(folder, "lora", tmp_path / "lora", base=str(base))
    part = "block_sparse_moe.experts.3.w3" if model == "mixtral" else "mlp.experts.3.up_proj"

    found = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    a, b = (found[f"base_model.model.model.layers.1.{part}.lora_{end}.weight"] for end in "AB")
    name = "base_model.model.model.layers.1.mlp.experts.gate_up_proj"
    fused = load_file(folder / "adapter_model.safetensors")
    own = {key.removeprefix(f"{name}."): t for key, t in fused.items() if key.startswith(f"{name}.")}
    own = own if experts == "shared" else {key: t[3] for key, t in own.items()}
    up = own["bone_block"][:, 24:].T if variant == "bone" else own["bone_up"][24:]
    expected = up.repeat(1, 4) if variant == "bone" else up @ own["bone_down"]
    torch.testing.assert_close(b @ a, expected)
    assert done.exact
    if model != "gpt_oss":
        ids = tokens()
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "lora").eval()
        ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=1e-3, atol=1e-4)


@models
@pytest.mark.parametrize("variant", ["bone", "bottleneck"])
@pytest.mark.parametrize(("experts", "targets"), [("each", "all-linear"), ("shared", ["gate_up_proj"])])
def test_lora_of_target_parameters(model, variant, experts, targets, tmp_path):
    """All experts of a layer together, as PEFT's LoRA keeps them: it computes what Bone does, with gpt-oss too."""
    base = saved(MODELS[model](), tmp_path / "base", torch.float32)
    live = AutoModelForCausalLM.from_pretrained(base)
    folder = adapter(live, tmp_path / "adapter", config_for(variant, target_modules=targets, experts=experts))
    assert convert(folder, "lora", tmp_path / "lora", base=str(base), fused=True).exact
    ids, plain = tokens(), AutoModelForCausalLM.from_pretrained(base).eval()
    theirs = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "lora").eval()
    ours = PeftModel.from_pretrained(copy.deepcopy(plain), folder).eval()
    torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(theirs(ids).logits, plain(ids).logits, atol=1e-3)


@pytest.mark.parametrize("variant", ["bat-input", "bottleneck"])
def test_gates_and_ups_that_do_not_make_one(variant, tmp_path):
    """Two adapters an expert, in the file of the fused model and in the older one."""
    plain = mixtral()
    base = saved(copy.deepcopy(plain), tmp_path / "base")
    two_blocks(variant, tmp_path / "old", plain)
    expected = in_memory(base, tmp_path / "old")
    PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "old").save_pretrained(tmp_path / "new")
    for name in ("old", "new"):
        done = merge(str(base), tmp_path / name, tmp_path / f"merged-{name}")
        assert_same(expected, AutoModelForCausalLM.from_pretrained(done.out, dtype="auto"))
    fused = copy.deepcopy(plain).to(torch.bfloat16)
    fused.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert any("gate_up_proj" in name for name in load_file(tmp_path / "fused" / "model.safetensors"))
    merge(str(tmp_path / "fused"), tmp_path / "old", tmp_path / "merged-fused")
    assert_same(expected, AutoModelForCausalLM.from_pretrained(tmp_path / "merged-fused", dtype="auto"))
    if variant == "bottleneck":
        convert(tmp_path / "new", "lora", tmp_path / "lora", base=str(base))
        old, lora = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("old", "lora"))
        assert len(old) == len(lora)
        for key, tensor in old.items():
            ending = "bone_down", "lora_A.weight"
            ending = ending if key.endswith(ending[0]) else ("bone_up", "lora_B.weight")
            assert torch.equal(tensor, lora[key.replace(*ending)])


def test_a_live_model_is_its_own_base(tmp_path):
    from peft import get_peft_model

    model = randomize(get_peft_model(qwen(), config_for("bone", target_modules="all-linear")))
    convert(model, "lora", tmp_path / "lora")
    convert(model, "bone", tmp_path / "bone")
    again = load_file(tmp_path / "bone" / "adapter_model.safetensors")
    assert again["base_model.model.model.layers.0.mlp.experts.down_proj.bone_block"].shape == (4, 8, 32)
    assert adapter_of(model).layers.keys() == {k.removeprefix("base_model.model.").rpartition(".")[0] for k in again}


def test_what_cannot_be_converted(tmp_path):
    base = saved(qwen(), tmp_path / "base", torch.float32)
    live = AutoModelForCausalLM.from_pretrained(base)
    folder = adapter(copy.deepcopy(live), tmp_path / "bat", config_for("bat", target_modules="all-linear"))
    with pytest.raises(BoneError, match="holds the matrices of all experts, and of those the nearest LoRA is not"):
        convert(folder, "lora", tmp_path / "lora", base=str(base), rank=4)
    with pytest.raises(BoneError, match=r"is of several experts, whose names the base tells: name it with --base"):
        convert(folder, "miss", tmp_path / "miss")
    with pytest.raises(BoneError, match=r"rank, energy, uniform and fused are for LoRA, and miss is exact without"):
        convert(folder, "miss", tmp_path / "miss", base=str(base), fused=True)
    dense = saved(llama(), tmp_path / "dense", torch.float32)
    own = adapter(AutoModelForCausalLM.from_pretrained(dense), tmp_path / "own", config_for("bone"))
    with pytest.raises(BoneError, match=r"fused is for adapters of experts, and this one has none"):
        convert(own, "lora", tmp_path / "lora", base=str(dense), fused=True)
    other = Qwen3MoeForCausalLM(Qwen3MoeConfig(**OPTIONS, moe_intermediate_size=24, num_experts=6))
    with pytest.raises(BoneError, match=r"does not fit this base: .*experts\.\w+' is 6 x "):
        merge(str(saved(other, tmp_path / "other")), folder, tmp_path / "out")


@pytest.mark.parametrize(("change", "shown"), [("shape", r"of shape \(32, 32\)"), ("number", r"as \(4, 32\)")])
def test_weights_of_another_model(change, shown, tmp_path):
    base = saved(qwen(), tmp_path / "base", torch.float32)
    live = AutoModelForCausalLM.from_pretrained(base)
    folder = adapter(live, tmp_path / "adapter", config_for("bone", target_modules=["q_proj"]))
    weights = load_file(base / "model.safetensors")
    if change == "shape":
        weights["model.layers.1.mlp.experts.3.up_proj.weight"] = torch.zeros(32, 32)
    else:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"num_experts": 3, "num_local_experts": 3}))
    save_file(weights, base / "model.safetensors")
    with pytest.raises(BoneError, match=rf"config\.json asks for .* and the weights hold .*{shown}"):
        merge(str(base), folder, tmp_path / "out")
