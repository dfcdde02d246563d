"""Adapters in other formats do what they did before, to the bit where it can be."""

import pytest
import torch
from peft import LoraConfig, MissConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import bone_peft
from bone_peft import BoneError, BoneLayer
from bone_peft.files.adapters import read_adapter
from bone_peft.files.conversion import convert

from ..models import ALL_VARIANTS, LLAMA_LINEARS, config_for, gpt2, llama, randomize, tokens

EXACT = {"rtol": 1e-6, "atol": 1e-6}


def assert_equal(a, b) -> None:
    one, other = read_adapter(a)[0].tensors(), read_adapter(b)[0].tensors()
    assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def fill(model, prefix, std):
    """Random values for the trained tensors of PEFT's own methods."""
    for name, parameter in model.named_parameters():
        if prefix in name:
            torch.nn.init.normal_(parameter, std=std)


def logits(base, adapter, x) -> torch.Tensor:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()(x).logits


@pytest.mark.parametrize("to", ["bone", "miss", "lora", "rwkv"])
@pytest.mark.parametrize("name", ["bone-llama", "bone-llama-ragged"])
def test_peft_0_18_there_and_back(tmp_path, fixtures, name, to):
    folder = fixtures / "peft-0.18.1" / name
    out = tmp_path / ("out.pth" if to == "rwkv" else "out")
    assert convert(folder / "adapter", to, out, base=str(folder / "base")).exact
    if to != "rwkv":
        expected = load_file(folder / "expected.safetensors")
        found = logits(folder / "base", out, expected["input_ids"])
        torch.testing.assert_close(found, expected["logits"], **EXACT)
    convert(out, "bone", tmp_path / "back")
    assert_equal(folder / "adapter", tmp_path / "back")


def test_bat_of_peft_0_18(tmp_path, fixtures):
    folder = fixtures / "peft-0.18.1" / "bat-llama"
    expected = load_file(folder / "expected.safetensors")
    convert(folder / "adapter", "miss", tmp_path / "miss")
    found = logits(folder / "base", tmp_path / "miss", expected["input_ids"])
    torch.testing.assert_close(found, expected["logits"], **EXACT)
    convert(tmp_path / "miss", "bone", tmp_path / "back")
    assert_equal(folder / "adapter", tmp_path / "back")


@pytest.mark.parametrize("kind", ["bone", "bat"])
def test_rwkv_there_and_back(tmp_path, fixtures, kind):
    source = fixtures / "rwkv-peft" / kind / "adapter.pth"
    convert(source, "bone", tmp_path / "bone")
    convert(tmp_path / "bone", "rwkv", tmp_path / "back.pth")
    one, other = (torch.load(path, weights_only=True) for path in (source, tmp_path / "back.pth"))
    assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_older_rwkv_names(tmp_path, fixtures):
    source = fixtures / "rwkv-peft" / "bone" / "adapter.pth"
    blocks = torch.load(source, weights_only=True)
    torch.save({name.replace(".disha", ".bone"): tensor for name, tensor in blocks.items()}, tmp_path / "old.pth")
    assert_equal(source, tmp_path / "old.pth")


@pytest.mark.parametrize("init_weights", [True, "bat", "mini"])
def test_miss_of_todays_peft(tmp_path, init_weights):
    config = MissConfig(r=8, init_weights=init_weights, mini_r=4, target_modules=LLAMA_LINEARS, task_type="CAUSAL_LM")
    model = get_peft_model(llama(), config).eval()
    fill(model, "miss_", 0.05)
    x = tokens()
    want = model(x).logits
    model.save_pretrained(tmp_path / "miss")
    model.unload().save_pretrained(tmp_path / "base")
    convert(tmp_path / "miss", "bone", tmp_path / "bone", base=str(tmp_path / "base"))
    torch.testing.assert_close(logits(tmp_path / "base", tmp_path / "bone", x), want, **EXACT)


def test_mini_needs_a_base(tmp_path):
    config = MissConfig(r=8, init_weights="mini", mini_r=4, target_modules=["q_proj"])
    get_peft_model(llama(), config).save_pretrained(tmp_path / "miss")
    with pytest.raises(BoneError, match="--base"):
        convert(tmp_path / "miss", "bone", tmp_path / "bone")


@pytest.mark.parametrize("model,targets", [(llama, LLAMA_LINEARS), (gpt2, ["c_attn", "c_fc"])])
@pytest.mark.parametrize("variant", ["bone", "bottleneck"])
def test_a_live_model_as_lora_in_peft(tmp_path, variant, model, targets):
    pattern = {targets[1]: 5}
    tuned = randomize(get_peft_model(model(), config_for(variant, target_modules=targets, rank_pattern=pattern))).eval()
    x = tokens()
    want = tuned(x).logits
    assert convert(tuned, "lora", tmp_path / "lora").exact
    found = PeftModel.from_pretrained(tuned.unload(), tmp_path / "lora").eval()
    assert isinstance(found.peft_config["default"], LoraConfig)
    torch.testing.assert_close(found(x).logits, want, **EXACT)


def test_the_package_itself_converts(tmp_path):
    tuned = randomize(get_peft_model(llama(), config_for("bone")))
    assert bone_peft.convert(tuned, "miss", tmp_path / "miss").exact
    assert bone_peft.convert(tmp_path / "miss", "bone", tmp_path / "bone").exact


def test_one_rank_for_engines_that_know_of_one_only(tmp_path):
    tuned = randomize(get_peft_model(llama(), config_for("bone", rank_pattern={"down_proj": 5}))).eval()
    x = tokens()
    want = tuned(x).logits
    assert convert(tuned, "lora", tmp_path / "lora", uniform=True).exact
    found = PeftModel.from_pretrained(tuned.unload(), tmp_path / "lora").eval()
    config = found.peft_config["default"]
    assert (config.r, config.lora_alpha, config.rank_pattern, config.alpha_pattern) == (8, 8, {}, {})
    torch.testing.assert_close(found(x).logits, want, **EXACT)


def test_lora_with_scaling_becomes_bottleneck(tmp_path):
    config = LoraConfig(r=4, lora_alpha=6, rank_pattern={"v_proj": 2}, target_modules=["q_proj", "v_proj"])
    tuned = get_peft_model(llama(), config).eval()
    fill(tuned, "lora_", 0.1)
    x = tokens()
    want = tuned(x).logits
    tuned.save_pretrained(tmp_path / "lora")
    convert(tmp_path / "lora", "bone", tmp_path / "bone")
    found = PeftModel.from_pretrained(tuned.unload(), tmp_path / "bone").eval()
    torch.testing.assert_close(found(x).logits, want, **EXACT)


@pytest.mark.parametrize("variant", ["bat", "bat-input"])
def test_bat_to_the_nearest_lora(tmp_path, variant):
    tuned = randomize(get_peft_model(llama(), config_for(variant)))
    weights = {
        name.removeprefix("base_model.model."): (layer.get_base_weight(), layer.get_delta_weight("default"))
        for name, layer in tuned.named_modules()
        if hasattr(layer, "bone_variant")
    }
    result = convert(tuned, "lora", tmp_path / "r4", rank=4)
    assert set(result.errors) == set(weights)
    for name, (_, delta) in weights.items():
        best = torch.linalg.svdvals(delta.detach().double())
        want = (best[4:].square().sum() / best.square().sum()).sqrt().item()
        assert result.errors[name] == pytest.approx(want, rel=1e-4)
        assert result.adapter.r(name) == 4
    kept = convert(tuned, "lora", tmp_path / "e9", energy=0.9)
    assert max(kept.errors.values()) <= (1 - 0.9) ** 0.5 < max(result.errors.values())
    whole = convert(tuned, "lora", tmp_path / "all", energy=1.0)
    assert max(whole.errors.values()) < 1e-5


def weights(model) -> dict[str, torch.Tensor]:
    """``dW`` of every layer by the definition, in float64, with the scale that the layer has."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, BoneLayer):
            params = {
                key: getattr(layer, key)["default"].detach().double()
                for key in layer.bone_variant["default"].parameters
            }
            weight = layer.get_base_layer().weight.detach().double()
            delta = layer.bone_variant["default"].delta_weight(params, weight.T if layer.fan_in_fan_out else weight)
            found[name.removeprefix("base_model.model.")] = layer.bone_scaling["default"] * delta
    return found


def scale(model) -> None:
    """Another factor in every layer, one of them zero, one negative."""
    layers = [layer for layer in model.modules() if isinstance(layer, BoneLayer)]
    for index, layer in enumerate(layers):
        layer.set_scale("default", 0.5 * index - 0.5)
        layer.scale_layer(0.9)


SCALED = [
    ("bone", "bone", {}),
    ("bone", "miss", {}),
    ("bone", "lora", {}),
    ("bone", "lora", {"uniform": True}),
    ("bone", "lora", {"energy": 1.0}),
    ("bone", "rwkv", {}),
    ("bat", "bone", {}),
    ("bat", "miss", {}),
    ("bat", "lora", {"energy": 1.0}),
    ("bat-input", "bone", {}),
    ("bat-input", "rwkv", {}),
    ("bat-input", "lora", {"energy": 1.0}),
    ("bottleneck", "bone", {}),
    ("bottleneck", "lora", {}),
    ("bottleneck", "lora", {"rank": 8}),
]


@pytest.mark.parametrize("model,targets", [(llama, LLAMA_LINEARS), (gpt2, ["c_attn", "c_fc"])])
@pytest.mark.parametrize("variant,to,options", SCALED)
def test_the_scale_of_a_live_model(tmp_path, variant, to, options, model, targets):
    tuned = randomize(get_peft_model(model(), config_for(variant, target_modules=targets))).eval()
    scale(tuned)
    want = weights(tuned)
    bases = {
        name: module.weight for name, module in tuned.get_base_model().named_modules() if hasattr(module, "weight")
    }
    out = tmp_path / ("out.pth" if to == "rwkv" else "out")
    convert(tuned, to, out, **options)
    written, _ = read_adapter(out)
    assert set(written.layers) == set(want)
    for name, params in written.layers.items():
        held = {key: tensor.double() for key, tensor in params.items()}
        weight = bases[f"{name}.base_layer"].detach().double()
        delta = written.variant.delta_weight(held, weight if model is llama else weight.T)
        torch.testing.assert_close(delta, want[name], rtol=1e-4, atol=1e-5)


def test_a_scaled_model_is_what_its_conversion_computes(tmp_path):
    tuned = randomize(get_peft_model(llama(), config_for("bone"))).eval()
    scale(tuned)
    x = tokens()
    want = tuned(x).logits
    for to in ("bone", "miss", "lora"):
        convert(tuned, to, tmp_path / to)
    tuned.unload().save_pretrained(tmp_path / "base")
    for to in ("bone", "miss", "lora"):
        torch.testing.assert_close(logits(tmp_path / "base", tmp_path / to, x), want, **EXACT)


@pytest.mark.parametrize(
    "variant,to", [("bone", "lora"), ("bat", "miss"), ("bat-input", "rwkv"), ("bottleneck", "bone")]
)
def test_a_scaled_model_that_is_merged(tmp_path, variant, to):
    tuned = randomize(get_peft_model(llama(), config_for(variant))).eval()
    scale(tuned)
    suffix = ".pth" if to == "rwkv" else ""
    convert(tuned, to, tmp_path / f"before{suffix}")
    tuned.merge_adapter()
    convert(tuned, to, tmp_path / f"merged{suffix}")
    assert_equal(tmp_path / f"before{suffix}", tmp_path / f"merged{suffix}")


def test_the_nearest_lora_needs_the_weight_unmerged(tmp_path):
    tuned = randomize(get_peft_model(llama(), config_for("bat"))).eval()
    tuned.merge_adapter()
    with pytest.raises(BoneError, match="unmerge_adapter"):
        convert(tuned, "lora", tmp_path / "lora", rank=4)


def test_each_adapter_has_a_scale_of_its_own(tmp_path):
    tuned = get_peft_model(llama(), config_for("bone"))
    tuned.add_adapter("other", config_for("bone", r=4))
    randomize(tuned)
    for layer in tuned.modules():
        if isinstance(layer, BoneLayer):
            layer.set_scale("other", 3.0)
    convert(tuned, "bone", tmp_path / "default")
    plain, _ = read_adapter(tmp_path / "default")
    convert(tuned, "bone", tmp_path / "other", adapter_name="other")
    tripled, _ = read_adapter(tmp_path / "other")
    for name, layer in tuned.named_modules():
        if isinstance(layer, BoneLayer):
            key = name.removeprefix("base_model.model.")
            assert torch.equal(plain.layers[key]["bone_block"], layer.bone_block["default"])
            assert torch.equal(tripled.layers[key]["bone_block"], 3 * layer.bone_block["other"])


@pytest.mark.parametrize(
    "variant,to,options,match",
    [
        ("bat", "lora", {}, "full rank"),
        ("bat-input", "lora", {}, "full rank"),
        ("bat", "lora", {"rank": 4, "energy": 0.5}, "not both"),
        ("bat", "lora", {"rank": 0}, "at least 1"),
        ("bat", "lora", {"energy": 1.5}, "at most 1"),
        ("bat-input", "miss", {}, "no bat-input"),
        ("bottleneck", "miss", {}, "no bottleneck"),
        ("bone", "miss", {"rank": 3}, "leave them out"),
        ("bone", "gguf", {}, "no format"),
    ],
)
def test_what_cannot_be(tmp_path, variant, to, options, match):
    tuned = get_peft_model(llama(), config_for(variant))
    with pytest.raises(BoneError, match=match):
        convert(tuned, to, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_several_r_are_no_miss(tmp_path):
    tuned = get_peft_model(llama(), config_for("bone", rank_pattern={"q_proj": 4}))
    with pytest.raises(BoneError, match="one r for all"):
        convert(tuned, "miss", tmp_path / "out")


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_our_own_folders(tmp_path, variant):
    tuned = randomize(get_peft_model(llama(), config_for(variant, bias="all", modules_to_save=["lm_head"])))
    tuned.save_pretrained(tmp_path / "saved")
    convert(tuned, "bone", tmp_path / "live")
    convert(tmp_path / "saved", "bone", tmp_path / "copied")
    assert_equal(tmp_path / "saved", tmp_path / "live")
    assert_equal(tmp_path / "saved", tmp_path / "copied")
    assert "lm_head.weight" in read_adapter(tmp_path / "copied")[0].whole
