"""GGUF files of mixtures of experts: a tensor for all gates, one for all ups, one for all downs."""

import copy
from pathlib import Path

import gguf
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from bone_peft import BoneError
from bone_peft.files.bases import load_base
from bone_peft.files.merging import merge

from ..models import ALL_VARIANTS, SMALL, config_for, tokens
from ..versions import needs
from .small_gguf import ATTENTION, HIDDEN, NORMS, write_small_gguf
from .test_merging import adapter

pytestmark = needs("transformers", "5.17")


def write_gguf(path: Path, own: int = 768, experts: int = 4) -> None:
    """A Qwen3-MoE with its experts quantized. Transformers loads experts of 768 neurons only."""

    def settings(writer):
        writer.add_feed_forward_length(48)
        writer.add_key_length(8)
        writer.add_value_length(8)
        writer.add_rope_freq_base(10_000.0)
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(own)

    layer = {**ATTENTION, **NORMS, "attn_q_norm": (8,), "attn_k_norm": (8,), "ffn_gate_inp": (experts, HIDDEN)}
    layer |= {f"ffn_{part}_exps": (experts, own, HIDDEN) for part in ("gate", "up")}
    layer |= {"ffn_down_exps": (experts, HIDDEN, own)}
    write_small_gguf(path, "qwen3moe", layer, {"output": (64, HIDDEN)}, settings)


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_merge(variant, tmp_path):
    """As Transformers loads it and the live model computes; the folder has the names that other programs know."""
    write_gguf(tmp_path / "base.gguf")
    base = str(tmp_path / "base.gguf")
    live = load_base(base, dtype="float32")[0].eval()
    folder = adapter(live, tmp_path / "adapter", config_for(variant, target_modules="all-linear"))
    done = merge(base, folder, tmp_path / "out", dtype="float32")
    assert done.changed == 2 * (4 + 2)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["model.layers.1.mlp.experts.3.up_proj.weight"].shape == (768, HIDDEN)
    merged, plain, ids = AutoModelForCausalLM.from_pretrained(done.out), load_base(base, dtype="float32")[0], tokens()
    tuned = PeftModel.from_pretrained(copy.deepcopy(plain), folder).eval()
    torch.testing.assert_close(merged(ids).logits, tuned(ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged(ids).logits, plain(ids).logits, atol=1e-2)


def test_the_size_of_experts_is_the_files(tmp_path):
    """Every weight, as GGUF's own package unpacks it."""
    write_gguf(tmp_path / "base.gguf", own=64)
    options = {**SMALL, "num_experts_per_tok": 2, "head_dim": 8, "moe_intermediate_size": 64, "num_experts": 4}
    live = Qwen3MoeForCausalLM(Qwen3MoeConfig(**options))
    folder = adapter(live, tmp_path / "adapter", config_for("bone", target_modules=["gate_proj", "up_proj"]))
    merge(str(tmp_path / "base.gguf"), folder, tmp_path / "out", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    block = load_file(folder / "adapter_model.safetensors")
    for source in gguf.GGUFReader(tmp_path / "base.gguf").tensors:
        if not source.name.startswith("blk.1.ffn") or not source.name.endswith("exps.weight"):
            continue
        expected = torch.from_numpy(gguf.quants.dequantize(source.data, source.tensor_type))
        part = source.name.split("_")[1]
        experts = merged.model.layers[1].mlp.experts
        got = experts.down_proj if part == "down" else experts.gate_up_proj.chunk(2, 1)[part == "up"]
        if part != "down":
            own = block["base_model.model.model.layers.1.mlp.experts.gate_up_proj.bone_block"].chunk(2, 2)
            expected = expected + own[part == "up"].mT.repeat(1, 1, HIDDEN // 8)
        torch.testing.assert_close(got, expected)


def test_an_adapter_of_another_number_of_experts(tmp_path):
    write_gguf(tmp_path / "base.gguf")
    live = load_base(str(tmp_path / "base.gguf"), dtype="float32")[0]
    folder = adapter(live, tmp_path / "adapter", config_for("bone", target_modules=["gate_up_proj"]))
    write_gguf(tmp_path / "other.gguf", experts=6)
    with pytest.raises(BoneError, match=r"does not fit this base: .*gate_up_proj' is 6 x 1536 x 32"):
        merge(str(tmp_path / "other.gguf"), folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
