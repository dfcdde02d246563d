"""Several adapters on one model: composed, by row, scaled, added."""

import copy
import itertools

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import GenerationConfig

from bone_peft import BoneError, BoneLayer

from ...models import ALL_VARIANTS, config_for, llama, opt, randomize, tokens
from ..variants.reference import DELTA

variants = pytest.mark.parametrize("variant", ALL_VARIANTS)


def layers(model):
    return [module for module in model.modules() if isinstance(module, BoneLayer)]


def model_with(**adapters):
    """A double precision model with the named adapters, of the given variants."""
    (first, variant), *others = adapters.items()
    model = get_peft_model(llama().double(), config_for(variant), adapter_name=first)
    for name, variant in others:
        model.add_adapter(name, config_for(variant, r=4))
    randomize(model)
    for layer in layers(model):
        for name in layer.bone_variant:
            for parameter in layer._parameters_of(name).values():
                parameter.data = parameter.data.double()
    return model.eval()


@pytest.mark.parametrize("pair", list(itertools.product(ALL_VARIANTS, repeat=2)))
def test_active_adapters_compose_in_order(pair):
    """Each adapter changes the weight that those before it have already changed."""
    model = model_with(a=pair[0], b=pair[1])
    model.base_model.set_adapter(["a", "b"])
    layer = layers(model)[-1]
    weight = layer.get_base_layer().weight.detach().numpy()
    for name, variant in zip("ab", pair, strict=True):
        params = {key: value.detach().numpy() for key, value in layer._parameters_of(name).items()}
        weight = weight + DELTA[variant](params, weight)

    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    expected = x @ torch.from_numpy(weight).T
    torch.testing.assert_close(layer(x), expected)
    layer.merge()
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.get_base_layer().weight.detach().numpy(), weight)


def test_rows_with_adapters_of_their_own():
    model = model_with(a="bone", b="bat", c="bat-input", d="bottleneck")
    ids = tokens(rows=6)
    rows = ["a", "__base__", "c", "b", "d", "a"]
    mixed = model(ids, adapter_names=rows).logits
    for i, name in enumerate(rows):
        with model.disable_adapter() if name == "__base__" else torch.no_grad():
            if name != "__base__":
                model.set_adapter(name)
            torch.testing.assert_close(mixed[i : i + 1], model(ids[i : i + 1]).logits)


@pytest.mark.parametrize("between", [(), (3,), (2, 3)])
def test_rows_of_adapters_that_add_share_one_pass_through_the_frozen_layer(between):
    model = model_with(a="bone", b="bottleneck", c="bone")
    layer = layers(model)[-1]
    calls = []
    layer.get_base_layer().register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(5, *between, layer.in_features, dtype=torch.float64)
    rows = ["b", "a", "__base__", "c", "b"]
    with torch.inference_mode():
        layer(x, adapter_names=rows)
    mixed = layer(x, adapter_names=rows)
    assert len(calls) == 2
    for i, name in enumerate(rows):
        torch.testing.assert_close(mixed[i], layer(x[i : i + 1], adapter_names=[name])[0])
    assert layer(x[:0], adapter_names=[]).shape == (0, *between, layer.out_features)


def test_an_adapter_of_many_rows_beside_others():
    model = model_with(a="bone", b="bone", c="bone")
    layer = layers(model)[-1]
    rows = ["a", "b", *["c"] * 6, "a"]
    x = torch.randn(len(rows), 2, layer.in_features, dtype=torch.float64)
    mixed = layer(x, adapter_names=rows)
    for i, name in enumerate(rows):
        torch.testing.assert_close(mixed[i], layer(x[i : i + 1], adapter_names=[name])[0])


def test_a_row_without_adapter_is_the_base_whatever_an_adapter_would_make_of_it():
    model = model_with(a="bone", b="bone")
    layer = layers(model)[-1]
    x = torch.randn(3, 2, layer.in_features, dtype=torch.float64)
    x[0] = 1e308  # Its block sum is infinite.
    layer.get_base_layer().weight.data.fill_(1e-300)
    mixed = layer(x, adapter_names=["__base__", "a", "b"])
    assert torch.isfinite(mixed).all()
    assert torch.equal(mixed[0], layer.get_base_layer()(x)[0])


def test_rows_in_generation_with_beams():
    model = model_with(a="bone", b="bat")
    ids = tokens(rows=3)
    rows = ["a", "__base__", "b"]
    settings = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    mixed = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=rows, **settings)
    for i, name in enumerate(rows):
        alone = {"input_ids": ids[i : i + 1], "attention_mask": torch.ones_like(ids[i : i + 1]), **settings}
        if name == "__base__":
            with model.disable_adapter():
                expected = model.generate(**alone)
        else:
            model.set_adapter(name)
            expected = model.generate(**alone)
        assert torch.equal(mixed[i, : expected.shape[1]], expected[0])


def test_rows_on_an_adapter_that_only_some_layers_have():
    model = get_peft_model(llama(), config_for("bone", target_modules=["q_proj"]), adapter_name="a")
    model.add_adapter("b", config_for("bone", target_modules=["v_proj"]))
    randomize(model).eval()
    ids = tokens(rows=2)
    mixed = model(ids, adapter_names=["a", "b"]).logits
    for i, name in enumerate("ab"):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[i : i + 1], model(ids[i : i + 1]).logits)


@pytest.mark.parametrize(
    ("rows", "message"),
    [(["a"], "one adapter for each row"), (["a", "nobody"], "nobody, and the model has a")],
)
def test_bad_row_adapters(rows, message):
    model = model_with(a="bone")
    with pytest.raises(BoneError, match=message):
        model(tokens(rows=2), adapter_names=rows)


def test_row_adapters_are_for_inference_on_unmerged_models():
    model = model_with(a="bone")
    with pytest.raises(BoneError, match=r"model\.eval"):
        model.train()(tokens(rows=1), adapter_names=["a"])
    model.eval().merge_adapter()
    with pytest.raises(BoneError, match="unmerge_adapter"):
        model(tokens(rows=1), adapter_names=["a"])


@variants
def test_scale_is_a_factor_on_dw(variant):
    model = model_with(a=variant)
    layer = layers(model)[0]
    delta = layer.get_delta_weight("a")
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    base = layer.base_layer(x)

    def check(factor):
        torch.testing.assert_close(layer.get_delta_weight("a"), factor * delta)
        torch.testing.assert_close(layer(x), base + factor * (x @ delta.T))

    layer.set_scale("a", 0.5)
    check(0.5)
    layer.scale_layer(3)
    check(1.5)
    layer.unscale_layer(3)
    check(0.5)
    layer.unscale_layer()
    check(1)
    layer.set_scale("unknown", 2)
    check(1)


@variants
def test_add_weighted_adapter_is_exact(variant, tmp_path):
    model = model_with(a=variant)
    model.add_adapter("b", config_for(variant))
    randomize(model, adapter="b")
    names = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    layers(model)[0].set_scale("b", 2.0)
    expected = [0.3 * layer.get_delta_weight("a") - 1.2 * layer.get_delta_weight("b") for layer in layers(model)]

    model.add_weighted_adapter(["a", "b"], [0.3, -1.2], "sum")
    for layer, delta in zip(layers(model), expected, strict=True):
        torch.testing.assert_close(layer.get_delta_weight("sum"), delta, atol=1e-7, rtol=1e-5)
    assert model.active_adapters == ["a"]
    now = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert now == {**names, **{name: False for name in now if ".sum." in name}}

    ids = tokens()
    model.set_adapter("sum")
    logits = model(ids).logits
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    model.set_adapter("a")
    loaded = PeftModel.from_pretrained(copy.deepcopy(model).unload(), tmp_path / "sum").eval()
    torch.testing.assert_close(loaded(ids).logits, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "b"], [1.0, 1.0], "sum"), "differ in variant, r or target_modules"),
        ((["a", "c"], [1.0, 1.0], "sum"), "no adapter c"),
        ((["a"], [1.0, 1.0], "sum"), "as many weights as adapters"),
        ((["a"], [1.0], "b"), "an adapter b already"),
        ((["a"], [1.0], "sum", "svd"), "use 'linear'"),
    ],
)
def test_add_weighted_adapter_refuses_what_is_not_exact(arguments, message):
    model = model_with(a="bone", b="bat")
    with pytest.raises(BoneError, match=message):
        model.add_weighted_adapter(*arguments)
    assert list(model.peft_config) == ["a", "b"]


def test_adapter_beside_another_method():
    """A Bone adapter in a model goes on working when PEFT wraps other layers."""
    from peft import LoraConfig, inject_adapter_in_model

    base = opt()
    model = inject_adapter_in_model(config_for("bone", target_modules=["q_proj"]), base, adapter_name="bone")
    inject_adapter_in_model(LoraConfig(target_modules=["v_proj"], r=2), model, adapter_name="lora")
    randomize(model)
    assert model(tokens()).logits.isfinite().all()


@pytest.mark.parametrize("repeats", [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True, "top_k": 1}])
@pytest.mark.parametrize("how", ["keywords", "config", "the model's own"])
def test_generation_that_repeats_rows_repeats_their_names(repeats, how):
    model = model_with(a="bone", b="bat").eval()
    ids = tokens()[:2]
    common = {"max_new_tokens": 5, "pad_token_id": 0}
    times = 3 if "num_return_sequences" in repeats else 1

    def generate(rows, names):
        if how == "keywords":
            return model.generate(input_ids=rows, adapter_names=names, **common, **repeats)
        config = GenerationConfig(**common, **repeats)
        if how == "config":
            return model.generate(input_ids=rows, adapter_names=names, generation_config=config)
        model.base_model.model.generation_config = model.generation_config = config
        return model.generate(input_ids=rows, adapter_names=names)

    mixed = generate(ids, ["a", "b"])
    alone = [generate(ids[i : i + 1], [name]) for i, name in enumerate("ab")]
    assert len(mixed) == 2 * times and torch.equal(mixed, torch.cat(alone))
    with pytest.raises(BoneError, match=r"Length of `adapter_names` should be the same as the number of inputs"):
        generate(ids.repeat(3, 1), ["a", "b"])


def test_hot_swap_under_the_compiler_says_what_it_can():
    from peft.utils.hotswap import prepare_model_for_compiled_hotswap

    model = model_with(a="bone")
    before = {name: p for name, p in model.named_parameters()}
    prepare_model_for_compiled_hotswap(model)
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in before.items()}
    with pytest.raises(BoneError, match=r"Bone's r \(8 here\) is the size of its blocks"):
        prepare_model_for_compiled_hotswap(model, target_rank=16)
