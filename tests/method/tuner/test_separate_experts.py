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
from .test_experts import IDS, QWEN, logits, tuned

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


def two_blocks(variant, folder, base, std=0.05):
    """An adapter in ``folder`` whose gates and ups have nothing in common, and the base with it, by the formula."""
    tuned(variant, copy.deepcopy(base), target_modules=["w1", "w2", "w3"]).save_pretrained(folder)
    wanted = copy.deepcopy(base).double()
    shapes = {
        "bat-input": lambda out, n: {"bone_block": (n // 8, 8, 8)},
        "bottleneck": lambda out, n: {"bone_down": (8, n), "bone_up": (out, 8)},
    }[variant]
    old = {}
    for layer, expert in itertools.product(range(2), range(4)):
        experts = wanted.model.layers[layer].mlp.experts
        gate, up = experts.gate_up_proj[expert].chunk(2)
        for part, weight in {"w1": gate, "w3": up, "w2": experts.down_proj[expert]}.items():
            params = {name: torch.randn(shape) * std for name, shape in shapes(*weight.shape).items()}
            start = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}"
            old |= {f"{start}.{name}": tensor for name, tensor in params.items()}
            own = {name: tensor.double().numpy() for name, tensor in params.items()}
            with torch.no_grad():
                weight.add_(torch.from_numpy(DELTA[variant](own, weight.numpy())))
    save_file(old, folder / "adapter_model.safetensors")
    return wanted.float()


TWO = pytest.mark.parametrize("variant", ["bat-input", "bottleneck"])


@TWO
def test_gates_and_ups_that_do_not_make_one(variant, tmp_path):
    base = small_moe("mixtral")
    wanted = logits(two_blocks(variant, tmp_path, base))
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(logits(model), wanted, **close)
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model.get_base_model().set_experts_implementation(implementation)
        torch.testing.assert_close(logits(model), wanted, **close)
    weights = {name: p.clone() for name, p in model.named_parameters() if "base_layer" in name}
    model.merge_adapter()
    torch.testing.assert_close(logits(model), wanted, **close)
    model.unmerge_adapter()
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in weights.items())

    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "again").eval()
    torch.testing.assert_close(logits(again), wanted, **close)
    torch.testing.assert_close(logits(again.merge_and_unload()), wanted, **close)


@TWO
def test_two_of_them_and_one_that_has_one(variant, tmp_path):
    """As many adapters as there are, together and as one."""
    base = small_moe("mixtral")
    wanted = two_blocks(variant, tmp_path / "two", base)
    tuned(variant, copy.deepcopy(base), target_modules=["w1", "w2", "w3"]).save_pretrained(tmp_path / "one")
    model = PeftModel.from_pretrained(base, tmp_path / "two", adapter_name="two")
    model.load_adapter(tmp_path / "one", "one")
    delta = {
        name: [layer.get_delta_weight(adapter) for adapter in ("two", "one")]
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    model.add_weighted_adapter(["two", "one"], [0.5, 2.0], "sum")
    for name, (two, one) in delta.items():
        torch.testing.assert_close(model.get_submodule(name).get_delta_weight("sum"), 0.5 * two + 2 * one)
    torch.testing.assert_close(logits(model.eval()), logits(wanted), rtol=1e-4, atol=1e-5)
    for order in (["one", "two"], ["two", "one"]):
        model.base_model.set_adapter(order)
        running = logits(model)
        model.merge_adapter()
        torch.testing.assert_close(running, logits(model), rtol=1e-4, atol=1e-5)
        model.unmerge_adapter()
    model.load_adapter(tmp_path / "one", "two")  # And back.
    model.set_adapter("two")
    only = PeftModel.from_pretrained(small_moe("mixtral"), tmp_path / "one")
    shapes = {name.replace("two", "default"): p.shape for name, p in model.named_parameters() if ".two." in name}
    assert shapes == {name: p.shape for name, p in only.named_parameters() if ".bone_" in name}
    model.delete_adapter("two")


@TWO
def test_training_goes_on(variant, tmp_path):
    """The gradients of the running layers are those of the weights that the adapters make."""
    base = small_moe("mixtral").double()
    two_blocks(variant, tmp_path, base)
    model = PeftModel.from_pretrained(base, tmp_path, is_trainable=True, autocast_adapter_dtype=False).double()
    model(IDS, labels=IDS).loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    layers = [layer for layer in model.modules() if hasattr(layer, "bone_shared")]
    assert {layer.bone_parts["default"] for layer in layers} == {1, 2}
    merged = {layer: layer.get_base_layer().weight + layer.get_delta_weight("default") for layer in layers}
    for layer, weight in merged.items():
        layer.base_layer.__dict__["_parameters"] = {"weight": weight, "bias": None}
        layer._disable_adapters = True
    model(IDS, labels=IDS).loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if name in got}
    for name, grad in grads.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-6, atol=1e-10)


def test_adapters_of_two_sizes_are_refused(tmp_path):
    base = small_moe("mixtral")
    two_blocks("bat-input", tmp_path, base)
    old = load_file(tmp_path / "adapter_model.safetensors")
    key = next(key for key in old if ".experts.1.w3" in key)
    old[key] = torch.zeros(8, 4, 4)
    save_file(old, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BoneError, match=r"gate_up_proj has adapters of one size for w1 and w3, and in the file they"):
        PeftModel.from_pretrained(base, tmp_path)


def test_outputs_that_take_turns(tmp_path):
    options = {**QWEN, "num_local_experts": 4}
    base = transformers.GptOssForCausalLM(transformers.GptOssConfig(**options))
    tuned("bat-input", copy.deepcopy(base), target_modules=["gate_up_proj"]).save_pretrained(tmp_path)
    old = load_file(tmp_path / "adapter_model.safetensors")
    save_file({key: torch.cat([t, t + 1]) for key, t in old.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BoneError, match=r"gate_up_proj: the outputs of gate_proj and up_proj take turns in this model"):
        PeftModel.from_pretrained(base, tmp_path)
