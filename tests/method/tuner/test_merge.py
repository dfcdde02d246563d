"""Merging is computed in float32 and rounded once; unmerging returns the base bit for bit."""

import copy
import gc
import weakref

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from bone_peft import BoneConfig, BoneError, BoneLinear

from ...models import ALL_VARIANTS, config_for, gpt2, llama, randomize, tokens

variants = pytest.mark.parametrize("variant", ALL_VARIANTS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "bone_" not in name}


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


@variants
@dtypes
def test_any_number_of_cycles_returns_the_base(variant, dtype):
    model = randomize(get_peft_model(llama().to(dtype), config_for(variant)))
    before = weights(model)
    for _ in range(5):
        model.merge_adapter()
        assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
        model.unmerge_adapter()
        assert_same_bits(weights(model), before)


@variants
def test_conv1d_merges_and_unmerges(variant):
    config = config_for(variant, r=8, target_modules=["c_attn", "c_proj", "c_fc"])
    model = randomize(get_peft_model(gpt2(), config))
    assert isinstance(model.base_model.model.transformer.h[0].attn.c_attn.get_base_layer(), Conv1D)
    before, ids = weights(model), tokens()
    with torch.no_grad():
        adapted = model(ids).logits
        model.merge_adapter()
        torch.testing.assert_close(model(ids).logits, adapted, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert_same_bits(weights(model), before)


@variants
@dtypes
def test_several_adapters_are_rounded_once(variant, dtype):
    """Merging one adapter and then another gives the bits of merging both at once."""
    model = get_peft_model(llama().to(dtype), config_for(variant))
    model.add_adapter("second", config_for("bone", r=5))
    randomize(model)
    before = weights(model)
    model.merge_adapter(adapter_names=["default"])
    with pytest.warns(UserWarning, match="additionally merging second"):
        model.merge_adapter(adapter_names=["second"])
    stepwise = weights(model)
    model.unmerge_adapter()
    assert_same_bits(weights(model), before)
    model.merge_adapter(adapter_names=["default", "second"])
    assert_same_bits(weights(model), stepwise)


@variants
@dtypes
def test_merge_and_unload_gives_the_bits_of_merge_adapter(variant, dtype):
    model = randomize(get_peft_model(llama().to(dtype), config_for(variant)))
    other = copy.deepcopy(model)
    model.merge_adapter()
    merged = {name.replace(".base_layer", ""): tensor for name, tensor in weights(model.base_model.model).items()}
    assert_same_bits(weights(other.merge_and_unload()), merged)


def test_merge_and_unload_keeps_no_copy():
    model = randomize(get_peft_model(llama(), config_for("bone")))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    unmerged = weakref.ref(layer.get_base_layer().weight.data.untyped_storage())
    parameter = weakref.ref(layer.bone_block["default"])
    del layer
    merged = model.merge_and_unload()
    del model
    gc.collect()
    assert parameter() is None
    assert unmerged() is None
    assert merged is not None


def test_unmerge_after_the_model_moved_to_another_dtype():
    model = randomize(get_peft_model(llama(), config_for("bone")))
    before = weights(model)
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    assert_same_bits(weights(model), {name: tensor.to(torch.bfloat16) for name, tensor in before.items()})


@variants
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_safe_merge_refuses_and_changes_nothing(variant, value):
    model = get_peft_model(llama(), config_for(variant))
    model.add_adapter("broken", config_for(variant))
    randomize(model)
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    next(iter(layer._parameters_of("broken").values())).data.view(-1)[3] = value
    before = weights(layer)
    with pytest.raises(BoneError, match="NaN or infinity"):
        layer.merge(safe_merge=True, adapter_names=["broken"])
    assert_same_bits(weights(layer), before)
    assert not layer.merged

    layer.merge(adapter_names=["default"])
    merged = weights(layer)
    with (
        pytest.warns(UserWarning, match="additionally merging"),
        pytest.raises(BoneError, match="NaN or infinity"),
    ):
        layer.merge(safe_merge=True, adapter_names=["broken"])
    assert_same_bits(weights(layer), merged)
    assert layer.merged_adapters == ["default"]
    layer.unmerge()
    assert_same_bits(weights(layer), before)


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_safe_merge_of_a_model_leaves_every_layer_as_it_was(merge):
    model = randomize(get_peft_model(llama(), config_for("bone")))
    model.base_model.model.model.layers[1].mlp.down_proj.bone_block["default"].data[0, 0] = float("nan")
    before = weights(model)
    with pytest.raises(BoneError, match="NaN or infinity"):
        getattr(model, merge)(safe_merge=True)
    assert_same_bits(weights(model), before)


def test_forward_while_merged_and_disabled():
    base, ids = llama(), tokens()
    plain = base(ids).logits
    model = randomize(get_peft_model(base, config_for("bone")))
    adapted = model(ids).logits
    model.merge_adapter()
    torch.testing.assert_close(model(ids).logits, adapted, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, plain)


def test_unmerge_without_merge_warns():
    layer = BoneLinear(nn.Linear(8, 8), "default", 4, config=BoneConfig(r=4))
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()
