"""Every path gives what the definition gives, within rounding, whatever the layer is fed."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from bone_peft.errors import BoneError
from bone_peft.method.ops import bone_layer, dispatch
from bone_peft.method.ops.product import product

from .layers import DEVICE, HALF, KERNELS, PATHS, Case, assert_as_good_as, distance, gradients, path

VARIANTS = ["bone", "bat", "bat-input"]
SHAPES = [("bone", (96, 64), 16), ("bone", (100, 72), 16), ("bone", (40, 24), 48), ("bat", (96, 64), 16)]
SHAPES += [("bat", (96, 144), 48), ("bat-input", (96, 64), 16), ("bat-input", (144, 96), 48)]


def check(case, name, **how):
    truth = case.as_float64()
    if "x" in how:
        exact = how["x"].detach().double().requires_grad_(how["x"].requires_grad)
        assert_as_good_as(
            gradients(case, name, **how), gradients(case, "plain", **how), gradients(truth, "plain", exact)
        )
    else:
        assert_as_good_as(gradients(case, name, **how), gradients(case, "plain", **how), gradients(truth, "plain"))


@pytest.mark.parametrize(("name", "dtype"), PATHS)
@pytest.mark.parametrize(("variant", "features", "r"), SHAPES)
@pytest.mark.parametrize("hooked", [False, True], ids=["plain-linear", "black-box"])
def test_agrees_with_the_definition(variant, features, r, name, dtype, hooked):
    check(Case(variant, dtype, features, r, hooked=hooked), name)


@pytest.mark.parametrize(("name", "dtype"), PATHS)
@pytest.mark.parametrize(("variant", "features", "r"), SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hooked", [False, True], ids=["plain-linear", "black-box"])
def test_input_that_is_not_contiguous(variant, features, r, bias, hooked, name, dtype):
    case = Case(variant, dtype, features, r, bias=bias, hooked=hooked)
    across = torch.randn(features[0], 11, 3).to(dtype=dtype, device=DEVICE).permute(2, 1, 0).requires_grad_()
    check(case, name, x=across)


@pytest.mark.parametrize(("name", "dtype"), PATHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_rows(variant, name, dtype):
    case = Case(variant, dtype)
    nothing = torch.empty(0, 7, 96, dtype=dtype, device=DEVICE, requires_grad=True)
    y, dx, dblock = gradients(case, name, x=nothing)
    assert y.shape == (0, 7, 64)
    assert dx.shape == nothing.shape
    assert not dblock.any()


@pytest.mark.parametrize(("name", "dtype"), PATHS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("part", ["frozen adapter", "input without gradient"])
def test_only_what_is_wanted(variant, name, dtype, part):
    case = Case(variant, dtype)
    if part == "frozen adapter":
        case.params["bone_block"].requires_grad_(False)
    else:
        case.x.requires_grad_(False)
    check(case, name)


@pytest.mark.parametrize(("name", "dtype"), PATHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_layer_used_twice(variant, name, dtype):
    case = Case(variant, dtype, features=(64, 64))
    truth = case.as_float64()

    def twice(layer):
        return lambda x: layer(layer(x)) + layer(x)

    found = gradients(case, name, run=twice(case))
    plain = gradients(case, "plain", run=twice(case))
    assert_as_good_as(found, plain, gradients(truth, "plain", run=twice(truth)))


@pytest.mark.parametrize(("name", "dtype"), PATHS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(variant, name, dtype, reentrant):
    case = Case(variant, dtype)

    def run(x):
        with path(name):  # Backward runs the layer again.
            return case(x)

    straight = gradients(case, name)
    case.x.grad = case.params["bone_block"].grad = None
    with path(name):
        y = checkpoint(run, case.x, use_reentrant=reentrant)
        torch.manual_seed(2)
        y.backward(torch.randn(y.shape).to(dtype=y.dtype, device=y.device))
    for found, expected in zip((y, case.x.grad, case.params["bone_block"].grad), straight, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2 if name == "triton" else 1e-6, atol=1e-3)


@pytest.mark.parametrize("name", ["torch", "few tokens", *(["triton"] if KERNELS and DEVICE == "cuda" else [])])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_autocast(variant, name, weights):
    case = Case(variant, weights)
    case.x = case.x.detach().float().requires_grad_()
    check(case, name, context=torch.autocast(DEVICE, torch.bfloat16))


@pytest.mark.parametrize(("name", "dtype"), PATHS)
def test_bone_keeps_no_activation(name, dtype):
    case = Case("bone", dtype)
    kept = []
    with path(name), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        case(case.x)
    sizes = [t.numel() for t in kept if t.data_ptr() != case.linear.weight.data_ptr()]
    assert max(sizes) < case.x.numel()


@pytest.mark.parametrize(("name", "dtype"), PATHS)
@pytest.mark.parametrize("hooked", [False, True])
def test_bat_keeps_no_second_weight(name, dtype, hooked):
    case = Case("bat", dtype, features=(192, 192), hooked=hooked)
    kept = []
    with path(name), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        case(case.x)
    assert not [t for t in kept if t.shape == (192, 192) and t.data_ptr() != case.linear.weight.data_ptr()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_base_that_is_trained_gets_its_gradient(variant):
    case = Case(variant, torch.float32)
    case.linear.weight.requires_grad_()
    found = []
    for name in ("plain", "torch"):
        with path(name):
            found.append(torch.autograd.grad(case(case.x).square().sum(), case.linear.weight)[0])
    torch.testing.assert_close(found[1], found[0])


def test_the_environment_names_a_path(monkeypatch):
    monkeypatch.setenv("BONE_PEFT_PATH", "torch")
    assert dispatch._read_environment() == "torch"
    monkeypatch.setenv("BONE_PEFT_PATH", "auto")
    assert dispatch._read_environment() is None
    monkeypatch.setenv("BONE_PEFT_PATH", "fast")
    with pytest.raises(BoneError, match="BONE_PEFT_PATH is 'fast'"):
        dispatch._read_environment()


@pytest.mark.skipif(not KERNELS, reason="needs a GPU, or Triton's interpreter")
@pytest.mark.parametrize("tokens", [2048, 2100])
@pytest.mark.parametrize("more", [False, True], ids=["alone", "onto bias and y"])
def test_many_tokens_on_triton(tokens, more):
    """From 2048 tokens on, a program goes through several tiles of them."""
    s, block = torch.randn(tokens, 16, device=DEVICE).to(HALF), torch.randn(16, 24, device=DEVICE)
    bias, y = (torch.randn(*size, device=DEVICE).to(HALF) if more else None for size in [(24,), (tokens, 24)])
    with path("triton"):
        found, rounded = product(s, block, bias, y)
    exact = s.double() @ block.to(HALF).double() + sum(t.double() for t in (bias, y) if t is not None)
    assert torch.equal(rounded, block.to(HALF))
    assert found.shape == exact.shape and distance(found, exact) < torch.finfo(HALF).eps


@pytest.mark.skipif(DEVICE != "cpu", reason="is about CPUs")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_on_a_cpu(dtype, block_dtype, monkeypatch):
    """Without gradients the block is multiplied as it is kept, in the wider of the two types."""
    taken = []
    direct = bone_layer._directly
    monkeypatch.setattr(bone_layer, "_directly", lambda *args: taken.append(1) or direct(*args))
    case = Case("bone", dtype)
    case.params = {name: tensor.detach().to(block_dtype) for name, tensor in case.params.items()}
    x = case.x.detach()[:, :5]
    with torch.no_grad():
        got = case(x)
        blocks = x.double().unflatten(-1, (-1, 16)).sum(-2)
        frozen = torch.nn.functional.linear(x.double(), case.linear.weight.double(), case.linear.bias.double())
        wanted = frozen + blocks @ case.params["bone_block"].double()
    assert taken and got.dtype == dtype
    assert distance(got, wanted) < {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
