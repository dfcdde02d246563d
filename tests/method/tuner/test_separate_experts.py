"""Adapters with an entry for each expert, as PEFT 0.14 to 0.18 wrote them with Transformers 4, on fused experts."""

import copy
import itertools

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from bone_peft import BoneError

from ...versions import needs
from ..variants.reference import DELTA
from .test_experts import QWEN, logits, tuned

pytestmark = needs("transformers", "5.0")


@pytest.mark.parametrize(
    ("model_type", "block", "parts"),
    [
        ("mixtral", "block_sparse_moe", ("w1", "w3", "w2")),
        ("qwen3_moe", "mlp", ("gate_proj", "up_proj", "down_proj")),
        ("olmoe", "mlp", ("gate_proj", "up_proj", "down_proj")),
        ("deepseek_v3", "mlp", ("gate_proj", "up_proj", "down_proj")),
    ],
)
@pytest.mark.parametrize("variant", ["bone", "bat"])
def test_files_of_separate_experts(model_type, block, parts, variant, tmp_path):
    """As PEFT 0.14 to 0.18 wrote them with Transformers 4: each expert by the formula, in NumPy."""
    base = small_moe(model_type)
    tuned(variant, copy.deepcopy(base), target_modules=[*parts, "o_proj"]).save_pretrained(tmp_path)
    new = load_file(tmp_path / "adapter_model.safetensors")
    old, wanted = {}, copy.deepcopy(base)
    for key, tensor in new.items():
        name = key.removeprefix("base_model.model.")
        if ".experts." not in name:
            old[key] = torch.randn_like(tensor) * 0.05
            layer = wanted.get_submodule(name.removesuffix(".bone_block"))
            add_delta(variant, layer.weight, old[key])
            continue
        path = name.removesuffix(".bone_block")
        fused = wanted.get_parameter(path)
        own = parts[:2] if path.endswith("gate_up_proj") else parts[2:]
        for expert in range(len(tensor)):
            for part, weight in zip(own, fused[expert].chunk(len(own)), strict=True):
                shape = (8, weight.shape[0]) if variant == "bone" else (weight.shape[0] // 8, 8, 8)
                block_ = torch.randn(shape) * 0.05
                add_delta(variant, weight, block_)
                where = path.rpartition(".experts.")[0].replace(".mlp", f".{block}")
                old[f"base_model.model.{where}.experts.{expert}.{part}.bone_block"] = block_
    save_file(old, tmp_path / "adapter_model.safetensors")
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(wanted), rtol=1e-4, atol=1e-5)

    key = next(k for k in old if ".experts.2." in k)
    save_file({k: v for k, v in old.items() if k != key}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BoneError, match=r"no place in .* such as .*experts\.\d"):
        PeftModel.from_pretrained(small_moe(model_type), tmp_path)


def small_moe(model_type):
    options = {**QWEN, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "first_k_dense_replace": 0}
    latent = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    if model_type == "deepseek_v3":
        options |= latent | {"n_group": 1, "topk_group": 1, "num_key_value_heads": 4}
    names = {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe", "olmoe": "Olmoe", "deepseek_v3": "DeepseekV3"}
    config = getattr(transformers, f"{names[model_type]}Config")(**options)
    return getattr(transformers, f"{names[model_type]}ForCausalLM")(config).eval()


@torch.no_grad()
def add_delta(variant, weight, block):
    w = weight.double().numpy()
    weight.add_(torch.from_numpy(DELTA[variant]({"bone_block": block.double().numpy()}, w)))


def test_files_of_separate_experts_that_do_not_make_one(tmp_path):
    base = small_moe("mixtral")
    tuned("bat-input", copy.deepcopy(base), target_modules=["w1", "w2", "w3"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    old = {}
    for key, tensor in load_file(file).items():
        parts = ("w1", "w3") if "gate_up" in key else ("w2",)
        start = key.rpartition(".experts.")[0].replace(".mlp", ".block_sparse_moe")
        for expert, part in itertools.product(range(4), parts):
            old[f"{start}.experts.{expert}.{part}.bone_block"] = tensor[expert].clone()
    save_file(old, file)
    same = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert not torch.equal(logits(same.eval()), logits(base))
    old[next(key for key in old if ".experts.1.w3" in key)] += 1
    save_file(old, file)
    with pytest.raises(
        BoneError, match=r"gate_up_proj has one bat-input adapter for w1 and w3, and in the file they have"
    ):
        PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
