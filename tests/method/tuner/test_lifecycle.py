"""Bone behaves as PEFT's own methods do, from creation to unloading. Each test for all variants."""

import copy
import gc
import json
import weakref

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file

from bone_peft import BoneError, BoneLayer

from ...models import ALL_VARIANTS, config_for, llama, randomize, tokens

variants = pytest.mark.parametrize("variant", ALL_VARIANTS)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@variants
def test_starts_as_the_base_and_trains_only_the_adapter(variant, capsys):
    base, ids = llama(), tokens()
    before = logits(base, ids)
    model = get_peft_model(copy.deepcopy(base), config_for(variant))
    torch.testing.assert_close(logits(model, ids), before)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all(".bone_" in name for name in trainable)

    model.print_trainable_parameters()
    counted = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert f"trainable params: {counted:,}" in capsys.readouterr().out


@variants
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load(variant, low_cpu_mem_usage, tmp_path):
    base, ids = llama(), tokens()
    model = randomize(get_peft_model(copy.deepcopy(base), config_for(variant)))
    model.save_pretrained(tmp_path)

    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all(key.startswith("base_model.model.model.layers.") for key in saved)
    assert all(key.rpartition(".")[2] in ("bone_block", "bone_down", "bone_up") for key in saved)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "BONE"

    loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert loaded.peft_config["default"].variant is model.peft_config["default"].variant


@variants
def test_auto_class_finds_base_and_adapter(variant, tmp_path):
    base, ids = llama(), tokens()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    model = randomize(get_peft_model(base, config_for(variant)))
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@variants
def test_add_set_disable_delete(variant):
    base, ids = llama(), tokens()
    plain = logits(base, ids)
    model = randomize(get_peft_model(base, config_for(variant)))
    first = logits(model, ids)
    model.add_adapter("second", config_for("bone", r=5))
    randomize(model, adapter="second")
    assert torch.equal(logits(model, ids), first)

    model.set_adapter("second")
    second = logits(model, ids)
    assert not torch.allclose(second, first)
    grads = {n: p.requires_grad for n, p in model.named_parameters() if ".bone_" in n}
    assert all(needed == (".second." in name) for name, needed in grads.items())

    with model.disable_adapter():
        assert torch.equal(logits(model, ids), plain)
    assert torch.equal(logits(model, ids), second)

    model.delete_adapter("default")
    assert not any(".default." in name for name in model.state_dict())
    assert torch.equal(logits(model, ids), second)
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("default")


@variants
def test_load_adapter_beside_another(variant, tmp_path):
    base, ids = llama(), tokens()
    saved = randomize(get_peft_model(copy.deepcopy(base), config_for(variant)))
    saved.save_pretrained(tmp_path)
    model = randomize(get_peft_model(base, config_for("bone")))
    first = logits(model, ids)
    model.load_adapter(tmp_path, "other")
    assert torch.equal(logits(model, ids), first)
    model.set_adapter("other")
    assert torch.equal(logits(model, ids), logits(saved, ids))


@variants
def test_merge_and_unload_leaves_no_trace(variant):
    base, ids = llama(), tokens()
    names = set(base.state_dict())
    model = randomize(get_peft_model(base, config_for(variant)))
    adapted = logits(model, ids)
    merged = model.merge_and_unload()
    assert set(merged.state_dict()) == names
    assert not any(isinstance(module, BoneLayer) for module in merged.modules())
    torch.testing.assert_close(logits(merged, ids), adapted, atol=1e-5, rtol=1e-5)


@variants
def test_unload_returns_the_base(variant):
    base, ids = llama(), tokens()
    before = logits(base, ids)
    model = randomize(get_peft_model(base, config_for(variant)))
    model.merge_adapter()
    unloaded = model.unload()
    assert torch.equal(logits(unloaded, ids), before)


@variants
def test_hotswap(variant, tmp_path):
    from peft.utils.hotswap import hotswap_adapter

    base, ids = llama(), tokens()
    other = randomize(get_peft_model(copy.deepcopy(base), config_for(variant)))
    other.save_pretrained(tmp_path)
    model = randomize(get_peft_model(base, config_for(variant)))
    parameters = dict(model.named_parameters())
    hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
    assert torch.equal(logits(model, ids), logits(other, ids))
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters()), "swapped in place"


def test_hotswap_clears_layers_that_the_new_adapter_lacks(tmp_path):
    from peft.utils.hotswap import hotswap_adapter

    base, ids = llama(), tokens()
    other = randomize(get_peft_model(copy.deepcopy(base), config_for("bone", target_modules=["q_proj"])))
    other.save_pretrained(tmp_path)
    model = randomize(get_peft_model(base, config_for("bone", target_modules=["q_proj", "v_proj"])))
    hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
    torch.testing.assert_close(logits(model, ids), logits(other, ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "bat"}, "load it beside"),
        ({"variant": "bone", "r": 4}, "same r"),
        ({"variant": "bone", "target_modules": ["k_proj"]}, "does not have"),
    ],
)
def test_hotswap_refuses_what_does_not_fit_and_changes_nothing(change, message, tmp_path):
    from peft.utils.hotswap import hotswap_adapter

    base, ids = llama(), tokens()
    randomize(
        get_peft_model(copy.deepcopy(base), config_for(**{"target_modules": ["q_proj"], **change}))
    ).save_pretrained(tmp_path)
    model = randomize(get_peft_model(base, config_for("bone", target_modules=["q_proj"])))
    before = logits(model, ids)
    with pytest.raises(BoneError, match=message):
        hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
    assert torch.equal(logits(model, ids), before)


def test_hotswap_refuses_a_merged_adapter(tmp_path):
    from peft.utils.hotswap import hotswap_adapter

    model = randomize(get_peft_model(llama(), config_for("bone")))
    model.save_pretrained(tmp_path)
    model.merge_adapter()
    with pytest.raises(BoneError, match="unmerge_adapter"):
        hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")


def test_lora_hotswap_still_works(tmp_path):
    from peft import LoraConfig
    from peft.utils.hotswap import hotswap_adapter

    base, ids = llama(), tokens()
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    other = get_peft_model(copy.deepcopy(base), copy.deepcopy(config))
    other.save_pretrained(tmp_path)
    model = get_peft_model(base, config)
    hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
    assert torch.equal(logits(model, ids), logits(other, ids))


def _trained(model):
    model.train()(tokens(), labels=tokens()).loss.backward()


def _failed(model):
    # Between its first layer and its last: what watches this run never hears of its end.
    model.get_base_model().model.layers[1].mlp.down_proj.get_base_layer().register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.train()(tokens())


def _merged_and_back(model):
    model.merge_adapter()
    model(tokens())
    model.unmerge_adapter()


def _answered(model):
    model.eval().generate(input_ids=tokens(), max_new_tokens=2, pad_token_id=0)


@pytest.mark.parametrize("use", [_trained, _failed, _merged_and_back, _answered])
@pytest.mark.parametrize("variant", ["bone", "bat-input"])
def test_a_model_that_is_let_go_takes_its_memory_along(use, variant):
    model = get_peft_model(llama(), config_for(variant))
    use(model)
    layers = [weakref.ref(module) for module in model.modules() if isinstance(module, BoneLayer)]
    del model
    gc.collect()
    assert layers and not [layer for layer in layers if layer() is not None]
