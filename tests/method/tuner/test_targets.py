"""What Bone can be put on, and how a user names it."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from bone_peft import BoneConfig, BoneError, BoneLayer

from ...models import ALL_VARIANTS, LLAMA_LINEARS, config_for, gpt2, llama, opt, randomize, tokens


def adapted(model):
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BoneLayer)
    }


def linears(model, *endings):
    return {name for name, _ in model.named_modules() if name.endswith(tuple(f".{ending}" for ending in endings))}


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r".*self_attn\.(q|v)_proj$"])
def test_list_and_regular_expression(targets):
    base = llama()
    expected = linears(base, "q_proj", "v_proj")
    assert adapted(get_peft_model(base, BoneConfig(r=8, target_modules=targets))) == expected


def test_all_linear_spares_the_head():
    base = llama()
    expected = linears(base, *LLAMA_LINEARS)
    assert adapted(get_peft_model(base, BoneConfig(r=8, target_modules="all-linear"))) == expected


def test_all_linear_finds_conv1d():
    base = gpt2()
    expected = linears(base, "c_attn", "c_proj", "c_fc")
    assert adapted(get_peft_model(base, BoneConfig(r=8, target_modules="all-linear"))) == expected


@pytest.mark.parametrize(
    ("make", "endings"), [(llama, ("q_proj", "v_proj")), (opt, ("q_proj", "v_proj")), (gpt2, ("c_attn",))]
)
def test_defaults_follow_the_architecture(make, endings):
    base = make()
    expected = linears(base, *endings)
    assert adapted(get_peft_model(base, BoneConfig(r=8))) == expected


def test_exclude_modules_and_layers_to_transform():
    base = llama()
    config = BoneConfig(r=8, target_modules=LLAMA_LINEARS, exclude_modules=["up_proj"], layers_to_transform=[1])
    expected = {name for name in linears(base, *LLAMA_LINEARS) if ".layers.1." in name and "up_proj" not in name}
    assert adapted(get_peft_model(base, config)) == expected


def test_layers_pattern():
    base = llama()
    config = BoneConfig(r=8, target_modules=["q_proj"], layers_to_transform=0, layers_pattern="layers")
    assert adapted(get_peft_model(base, config)) == {"model.layers.0.self_attn.q_proj"}


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_rank_pattern(variant, tmp_path):
    base, ids = llama(), tokens()
    config = config_for(variant, r=8, rank_pattern={"q_proj": 4, r"layers\.1\.mlp\.down_proj": 16})
    model = randomize(get_peft_model(base, config))
    sizes = {name: module.bone_r["default"] for name, module in model.named_modules() if isinstance(module, BoneLayer)}
    for name, size in sizes.items():
        expected = 4 if name.endswith("q_proj") else 16 if name.endswith("layers.1.mlp.down_proj") else 8
        assert size == expected, name

    logits = model(ids).logits
    model.save_pretrained(tmp_path)
    base = model.unload()
    from peft import PeftModel

    assert torch.equal(PeftModel.from_pretrained(base, tmp_path).eval()(ids).logits, logits)


def test_modules_to_save(tmp_path):
    base, ids = llama(), tokens()
    model = randomize(get_peft_model(base, config_for("bone", modules_to_save=["lm_head"])))
    head = model.base_model.model.lm_head.modules_to_save["default"]
    assert head.weight.requires_grad
    nn.init.normal_(head.weight)
    logits = model(ids).logits
    model.save_pretrained(tmp_path)
    base = model.unload()
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(loaded(ids).logits, logits)
    assert torch.allclose(loaded.merge_and_unload()(ids).logits, logits, atol=1e-5)


@pytest.mark.parametrize("bias", ["none", "all", "bone_only"])
def test_bias(bias, tmp_path):
    base, ids = opt(), tokens()
    config = config_for("bone", target_modules=["q_proj"], bias=bias)
    model = randomize(get_peft_model(base, config))
    trained = {
        name for name, parameter in model.named_parameters() if parameter.requires_grad and name.endswith(".bias")
    }
    all_biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    expected = {
        "none": set(),
        "all": all_biases,
        "bone_only": {name for name in all_biases if ".q_proj." in name},
    }
    assert trained == expected[bias]

    for name, parameter in model.named_parameters():
        if name in trained:
            nn.init.normal_(parameter)
    logits = model(ids).logits
    model.save_pretrained(tmp_path)
    fresh = opt()
    state = {name.replace(".base_layer", ""): tensor for name, tensor in model.base_model.model.state_dict().items()}
    fresh.load_state_dict({name: tensor for name, tensor in state.items() if "bone_" not in name})
    from peft import PeftModel

    assert torch.equal(PeftModel.from_pretrained(fresh, tmp_path).eval()(ids).logits, logits)


@pytest.mark.parametrize("target", ["embed_tokens", "input_layernorm"])
def test_other_layers_are_refused_by_name_and_nothing_changes(target):
    base = llama()
    before = {name: type(module) for name, module in base.named_modules()}
    with pytest.raises(BoneError, match=f"{target} is a "):
        get_peft_model(base, BoneConfig(r=8, target_modules=["q_proj", target]))
    assert {name: type(module) for name, module in base.named_modules()} == before


def test_r_that_does_not_divide_names_the_layer_and_nothing_changes():
    base, ids = llama(), tokens()
    before, plain = {name: type(module) for name, module in base.named_modules()}, base(ids).logits
    config = BoneConfig(r=8, init_weights="bat", target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 5})
    with pytest.raises(BoneError, match=r"layers\.0\.mlp\.down_proj: Bat needs r to divide.*r=5.*32 x 48"):
        get_peft_model(base, config)
    assert {name: type(module) for name, module in base.named_modules()} == before
    assert torch.equal(base(ids).logits, plain)


def test_failed_second_adapter_leaves_the_first():
    model = randomize(get_peft_model(llama(), config_for("bone")))
    ids, names = tokens(), set(model.state_dict())
    before = model(ids).logits
    with pytest.raises(BoneError, match="Bat needs r"):
        model.add_adapter("second", config_for("bat", r=7))
    assert set(model.state_dict()) == names and list(model.peft_config) == ["default"]
    assert torch.equal(model(ids).logits, before)


def test_target_that_matches_nothing():
    with pytest.raises(ValueError, match=r"not found in the base model.*It has .*q_proj"):
        get_peft_model(llama(), BoneConfig(r=8, target_modules=["query"]))
