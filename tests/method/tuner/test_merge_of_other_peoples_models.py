"""Merging where weights are shared, computed or trained, and where only a part of the adapters is merged."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn.utils import prune
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    Zamba2Config,
    Zamba2ForCausalLM,
)

from bone_peft import BoneConfig, BoneError, merge

from ...models import ALL_VARIANTS, config_for, llama, randomize, tokens

IDS = tokens()
variants = pytest.mark.parametrize("variant", ALL_VARIANTS)
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


class Twice(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@variants
def test_two_layers_with_one_weight(variant):
    x = torch.randn(4, 32)
    model = randomize(get_peft_model(Twice(), config_for(variant, target_modules=["a", "b"], task_type=None))).eval()
    layers = model.base_model.model
    before, live = layers.a.base_layer.weight.detach().clone(), model(x).detach()
    model.merge_adapter()
    torch.testing.assert_close(model(x), live, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(layers.a.base_layer.weight, before)
    assert layers.a.base_layer.weight is layers.b.base_layer.weight
    assert torch.equal(model(x), live)
    torch.testing.assert_close(model.merge_and_unload()(x), live, atol=1e-5, rtol=1e-5)


def tied_llama():
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **SMALL)).eval()


@variants
def test_the_head_of_tied_embeddings(variant, tmp_path):
    tied_llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="tie_word_embeddings=True"):
        model = get_peft_model(base, config_for(variant, target_modules=["lm_head", "q_proj"]))
    live = logits(randomize(model))
    plain = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), live, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits(model), live)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)

    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), live, atol=1e-5, rtol=1e-5)
    assert merged.config.tie_word_embeddings is False
    merged.save_pretrained(tmp_path / "in-memory")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "in-memory")), live)
    merge(str(tmp_path / "base"), str(tmp_path / "adapter"), str(tmp_path / "by-files"))
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "by-files")), live)


def test_layers_that_an_architecture_uses_again_are_not_merged_for_good():
    config = Zamba2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, n_mamba_heads=4, mamba_d_state=8,
        mamba_headdim=16, intermediate_size=32, num_mem_blocks=1, use_shared_attention_adapter=False,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], mamba_ngroups=1, chunk_size=8, adapter_rank=4,
    )  # fmt: skip
    base = Zamba2ForCausalLM(config)
    model = randomize(get_peft_model(base, config_for("bone", target_modules=["q_proj"]))).eval()
    live = logits(model)
    with pytest.raises(BoneError, match="are one weight in every Zamba2ForCausalLM"):
        model.merge_and_unload()
    assert torch.equal(logits(model), live)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), live, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model), live)


def partly(variant, other):
    model = get_peft_model(llama(), config_for(variant, target_modules=["q_proj", "up_proj"]), adapter_name="a")
    model.add_adapter("b", config_for(other, target_modules=["q_proj", "o_proj"]))
    randomize(model)
    model.base_model.set_adapter(["a", "b"])
    return model


@pytest.mark.parametrize("other", ALL_VARIANTS)
@variants
def test_what_is_not_merged_runs_on_top(variant, other):
    model = partly(variant, other)
    both = logits(model)
    model.merge_adapter(adapter_names=["a"])
    torch.testing.assert_close(logits(model), both, atol=1e-5, rtol=1e-5)
    model.merge_adapter(adapter_names=["b"])
    torch.testing.assert_close(logits(model), both, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits(model), both)


def test_where_the_order_counts_it_is_kept_or_refused():
    model = partly("bat", "bat")
    both = logits(model)
    with pytest.raises(BoneError, match=r"q_proj: a multiplies the weight, so the order of a, b counts"):
        model.merge_adapter(adapter_names=["b"])
    assert torch.equal(logits(model), both)
    model.merge_adapter(adapter_names=["b", "a"])
    torch.testing.assert_close(logits(model), both, atol=1e-5, rtol=1e-5)

    adds = partly("bone", "bottleneck")
    both = logits(adds)
    adds.merge_adapter(adapter_names=["b"])
    torch.testing.assert_close(logits(adds), both, atol=1e-5, rtol=1e-5)


@variants
def test_an_inactive_adapter_is_merged_below_the_active_one(variant):
    model = partly(variant, "bone")
    model.set_adapter("b")
    model.merge_adapter(adapter_names=["a"])
    merged = logits(model)
    model.unmerge_adapter()
    for layer in model.modules():
        if "a" in getattr(layer, "bone_r", ()):
            layer.base_layer.weight.data += layer.get_delta_weight("a")
    torch.testing.assert_close(merged, logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", [["nobody"], ["default", "nobody"]])
def test_an_unknown_name_is_refused(names):
    model = randomize(get_peft_model(llama(), config_for("bone")))
    live = logits(model)
    for call in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(BoneError, match="There is no adapter nobody: the model has default"):
            call(adapter_names=names)
    assert torch.equal(logits(model), live)


class Computed(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.fc = COMPUTED[how](nn.Linear(32, 32))

    def forward(self, x):
        return self.fc(x)


COMPUTED = {
    "weight_norm": torch.nn.utils.parametrizations.weight_norm,
    "spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
    "old weight_norm": torch.nn.utils.weight_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", COMPUTED)
@variants
def test_a_computed_weight_is_right_or_refused_and_never_merged(variant, how):
    net = Computed(how).eval()
    x = torch.randn(4, 32)
    config = config_for(variant, target_modules=["fc"], task_type=None)
    if variant == "bat" and how in ("old weight_norm", "pruning"):
        with pytest.raises(BoneError, match="fc: the weight of this layer is computed by a hook"):
            get_peft_model(net, config)
        return
    plain, weight = net(x).detach(), net.fc.weight.detach()
    model = randomize(get_peft_model(net, config)).eval()
    layer = model.base_model.model.fc
    expected = plain + x @ layer.get_delta_weight("default", weight).T
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    for call in (model.merge_adapter, model.merge_and_unload, layer.merge):
        with pytest.raises(BoneError, match="the weight of this layer is computed from other parameters"):
            call()
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@variants
def test_a_base_weight_that_is_trained_gets_its_gradient(variant):
    model = get_peft_model(nn.Sequential(nn.Linear(32, 32)), config_for(variant, target_modules=["0"], task_type=None))
    layer = randomize(model).base_model.model[0]
    layer.base_layer.weight.requires_grad_(True)
    x = torch.randn(4, 32, dtype=torch.float64)
    model.double()
    model(x).square().sum().backward()
    found = layer.base_layer.weight.grad
    weight = layer.base_layer.weight.detach().clone().requires_grad_()
    delta = layer.bone_variant["default"].delta_weight(layer._parameters_of("default"), weight)
    (x @ (weight + delta).T + layer.base_layer.bias).square().sum().backward()
    torch.testing.assert_close(found, weight.grad)


@pytest.mark.parametrize("merge_too", [True, False])
def test_a_head_that_peft_saves_whole(merge_too):
    """RoBERTa's is a module without a weight of its own, in a wrapper of PEFT's."""
    config = RobertaConfig(vocab_size=64, pad_token_id=0, max_position_embeddings=64, **SMALL)
    base = RobertaForSequenceClassification(config).eval()
    before = logits(copy.deepcopy(base))
    model = randomize(get_peft_model(base, BoneConfig(r=8, task_type="SEQ_CLS"))).eval()
    nn.init.normal_(model.base_model.model.classifier.modules_to_save["default"].dense.weight)
    live = logits(model)
    done = model.merge_and_unload() if merge_too else model.unload()
    assert not any("Bone" in type(module).__name__ or "Wrapper" in type(module).__name__ for module in done.modules())
    if merge_too:
        torch.testing.assert_close(logits(done), live, atol=1e-5, rtol=1e-5)
    else:
        assert not torch.equal(logits(done), live) and before.shape == live.shape


def test_ensure_weight_tying(tmp_path):
    config = BoneConfig(r=8, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    base = tied_llama()
    model = get_peft_model(copy.deepcopy(base), config)
    inner = model.base_model.model
    embedding = inner.model.embed_tokens.modules_to_save["default"].weight
    assert inner.lm_head.modules_to_save["default"].weight is embedding
    nn.init.normal_(embedding)
    live = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)), live)
    with pytest.raises(BoneError, match=r"lm_head.*Bone adapts linear layers"):
        get_peft_model(copy.deepcopy(base), BoneConfig(r=8, target_modules=["lm_head"], ensure_weight_tying=True))
