"""Every variant against the float64 formulas: outputs, all gradients, dW and LoRA factors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bone_peft.method.tuner import BoneConfig, BoneLinear
from bone_peft.method.variants import VARIANTS

from .reference import DELTA, delta_gradient

CONFIGS = {
    "bone": lambda r, **kw: BoneConfig(r=r, **kw),
    "bat": lambda r, **kw: BoneConfig(r=r, init_weights="bat", **kw),
    "bat-input": lambda r, **kw: BoneConfig(r=r, init_weights="bat", share="input", **kw),
    "bottleneck": lambda r, **kw: BoneConfig(bottleneck_size=r, **kw),
}

# Rounding of the dtype, times the longest chain of additions here, with room.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}


def test_every_variant_is_tested():
    assert set(CONFIGS) == set(VARIANTS) == set(DELTA)


@st.composite
def cases(draw):
    name = draw(st.sampled_from(sorted(VARIANTS)))
    r = draw(st.integers(1, 6))
    divides = name.startswith("bat")
    features = r * draw(st.integers(1, 4)) if divides else draw(st.integers(1, 20))
    out = r * draw(st.integers(1, 4)) if divides else draw(st.integers(1, 12))
    lead = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    dtype = draw(st.sampled_from(sorted(TOLERANCE, key=str)))
    return name, r, features, out, tuple(lead), dtype, draw(st.booleans()), draw(st.integers(0, 2**31))


def random_layer(name, r, features, out, dtype, bias, seed):
    torch.manual_seed(seed)
    base = nn.Linear(features, out, bias=bias, dtype=dtype).requires_grad_(False)
    layer = BoneLinear(base, "default", r, config=CONFIGS[name](r))
    params = layer._parameters_of("default")
    for parameter in params.values():
        nn.init.normal_(parameter, std=0.5)
        # Values that the base's dtype holds exactly, in float32: what differs is then the arithmetic.
        parameter.data = parameter.data.to(dtype).to(torch.promote_types(dtype, torch.float32))
    return layer, params


def numbers(tensor):
    return tensor.detach().double().numpy()


def assert_close(actual, expected, dtype, what):
    assert actual.shape == expected.shape, what
    scale = max(np.abs(expected).max(initial=0.0), 1.0)
    error = np.abs(numbers(actual) - expected).max(initial=0.0) / scale
    assert error <= TOLERANCE[dtype], f"{what}: off by {error:.2e}"


@settings(max_examples=300, deadline=None)
@given(cases())
def test_output_and_all_gradients(case):
    name, r, features, out, lead, dtype, bias, seed = case
    layer, params = random_layer(name, r, features, out, dtype, bias, seed)
    x = torch.randn(*lead, features, dtype=dtype, requires_grad=True)
    grad = torch.randn(*lead, out, dtype=dtype)

    y = layer(x)
    y.backward(grad)

    assert y.dtype == x.grad.dtype == dtype
    weight = numbers(layer.get_base_layer().weight)
    reference = {key: numbers(value) for key, value in params.items()}
    adapted = weight + DELTA[name](reference, weight)
    flat_x, flat_grad = numbers(x).reshape(-1, features), numbers(grad).reshape(-1, out)
    expected = flat_x @ adapted.T + (numbers(layer.bias) if bias else 0)
    assert_close(y, expected.reshape(*lead, out), dtype, "output")
    assert_close(x.grad, (flat_grad @ adapted).reshape(*lead, features), dtype, "gradient of x")
    gradients = delta_gradient(name, reference, weight, flat_grad.T @ flat_x)
    for key, value in params.items():
        assert value.grad.dtype == value.dtype
        assert_close(value.grad, gradients[key], dtype, f"gradient of {key}")


@settings(max_examples=100, deadline=None)
@given(cases())
def test_delta_weight_and_merge(case):
    name, r, features, out, _, dtype, bias, seed = case
    layer, params = random_layer(name, r, features, out, dtype, bias, seed)
    weight = layer.get_base_layer().weight
    before = numbers(weight)
    delta = DELTA[name]({key: numbers(value) for key, value in params.items()}, before)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert_close(layer.get_delta_weight("default"), delta, wide, "dW")
    layer.merge()
    # Rounded once: within half a unit in the last place of the exact value, plus float32's own rounding.
    half_ulp = torch.finfo(dtype).eps / 2 * np.abs(before + delta) + TOLERANCE[wide] * max(
        1, np.abs(delta).max(initial=0)
    )
    assert (np.abs(numbers(weight) - (before + delta)) <= half_ulp).all()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_lora_factors(case):
    name, r, features, out, _, _, bias, seed = case
    layer, params = random_layer(name, r, features, out, torch.float64, bias, seed)
    factors = VARIANTS[name].lora_factors(params, features)
    if factors is None:
        assert name.startswith("bat")
        return
    a, b = factors
    assert a.shape == (r, features) and b.shape == (out, r)
    weight = numbers(layer.get_base_layer().weight)
    np.testing.assert_allclose(
        numbers(b) @ numbers(a),
        DELTA[name]({key: numbers(value) for key, value in params.items()}, weight),
        atol=1e-12,
    )


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_scaled_and_combined_are_exact(name):
    r, features, out = 3, 9, 6
    weight = torch.randn(out, features, dtype=torch.float64)
    variant = VARIANTS[name]
    adapters = [
        {key: torch.randn(shape, dtype=torch.float64) for key, shape in variant.shapes(features, out, r).items()}
        for _ in range(3)
    ]
    weights = [0.7, -1.3, 0.0]
    deltas = [variant.delta_weight(params, weight) for params in adapters]
    torch.testing.assert_close(variant.delta_weight(variant.scaled(adapters[0], 0.3), weight), 0.3 * deltas[0])
    combined = variant.combined(adapters, weights)
    expected = sum(w * delta for w, delta in zip(weights, deltas, strict=True))
    torch.testing.assert_close(variant.delta_weight(combined, weight), expected)
    assert {key: tuple(value.shape) for key, value in combined.items()} == variant.shapes(
        features, out, variant.combined_size([r] * 3)
    )


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_non_contiguous_input(name):
    layer, _ = random_layer(name, 4, 8, 12, torch.float64, True, 0)
    x = torch.randn(8, 5, dtype=torch.float64).T
    torch.testing.assert_close(layer(x), layer(x.contiguous()))
    strided = torch.randn(5, 16, dtype=torch.float64)[:, ::2]
    torch.testing.assert_close(layer(strided), layer(strided.contiguous()))


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_dropout_drops_only_the_adapters_input(name):
    field = VARIANTS[name].dropout_field
    base = nn.Linear(8, 12, dtype=torch.float64).requires_grad_(False)
    layer = BoneLinear(base, "default", 4, config=CONFIGS[name](4, **{field: 0.5}))
    for parameter in layer._parameters_of("default").values():
        nn.init.normal_(parameter)
        parameter.data = parameter.data.double()
    x = torch.randn(64, 8, dtype=torch.float64)

    torch.manual_seed(7)
    kept = layer.bone_dropout["default"](x)
    torch.manual_seed(7)
    y = layer(x)
    torch.testing.assert_close(y, base(x) + kept @ layer.get_delta_weight("default").T)
    assert not torch.equal(kept, x)

    layer.eval()
    torch.testing.assert_close(layer(x), base(x) + x @ layer.get_delta_weight("default").T)


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_rows_and_columns_are_those_of_dw(case, data):
    name, r, features, out, _, _, bias, seed = case
    layer, params = random_layer(name, r, features, out, torch.float64, bias, seed)
    variant, weight = VARIANTS[name], layer.get_base_layer().weight
    delta = DELTA[name]({key: numbers(value) for key, value in params.items()}, numbers(weight))

    def ends(size):
        unit = 1 if variant.cut_anywhere else r
        start = data.draw(st.integers(0, size // unit - 1))
        return start * unit, data.draw(st.integers(start + 1, size // unit)) * unit

    for cut, size, axis in ((variant.rows, out, 0), (variant.columns, features, 1)):
        start, stop = ends(size)
        of_weight = weight[start:stop] if axis == 0 else weight[:, start:stop]
        found = variant.delta_weight(cut(params, start, stop), of_weight)
        np.testing.assert_allclose(numbers(found), delta.take(range(start, stop), axis), atol=1e-12)
