"""Derivatives of derivatives, and PyTorch's other ways of differentiating and tracing."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.autograd import forward_ad

from ...models import ALL_VARIANTS, config_for, randomize
from .layers import DEVICE, Case, path

FAST = ["bone", "bat", "bat-input"]


@pytest.mark.parametrize("hooked", [False, True], ids=["plain-linear", "black-box"])
@pytest.mark.parametrize("variant", FAST)
@pytest.mark.parametrize("frozen", [None, "x", "adapter"])
def test_backward_through_backward(variant, hooked, frozen):
    case = Case(variant, torch.float64, (8, 12), 4, hooked=hooked)
    block = case.params["bone_block"].detach().double().requires_grad_(frozen != "adapter")
    x = case.x.detach()[:2, :2].requires_grad_(frozen != "x")

    def run(x, block):
        case.params = {"bone_block": block}
        return case(x * 1)

    with path("torch"):
        assert torch.autograd.gradcheck(run, (x, block))
        assert torch.autograd.gradgradcheck(run, (x, block))


@pytest.mark.parametrize("variant", FAST)
def test_gradients_of_a_gradient_penalty(variant):
    """As the definition has them, through two layers."""

    def penalty(name):
        case = Case(variant, torch.float32, (64, 64), 16)
        with path(name):
            (dx,) = torch.autograd.grad(case(torch.tanh(case(case.x))).square().sum(), case.x, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), [case.x, *case.params.values()])

    for found, expected in zip(penalty("torch"), penalty("plain"), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-3)


def layer(variant):
    model = get_peft_model(nn.Sequential(nn.Linear(32, 32)), config_for(variant, target_modules=["0"], task_type=None))
    return randomize(model).eval()


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_torch_func(variant):
    model, x = layer(variant), torch.randn(4, 32)
    trained = {name: p for name, p in model.named_parameters() if ".bone_" in name}
    found = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).square().sum())(
        {name: p.detach() for name, p in trained.items()}
    )
    expected = torch.autograd.grad(model(x).square().sum(), list(trained.values()))
    for mine, truth in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(mine, truth)
    torch.testing.assert_close(torch.func.vmap(model)(x), model(x))
    _, derivative = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(derivative, model(x + 1) - model(x), rtol=1e-4, atol=1e-4)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x))))
    torch.testing.assert_close(dual.tangent, derivative)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_traced_and_exported_for_other_batches(variant):
    model = layer(variant)
    traced = torch.jit.trace(model, torch.randn(4, 32))
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model.base_model.model, (torch.randn(4, 32),), dynamic_shapes=({0: batch},))
    other = torch.randn(7, 32)
    torch.testing.assert_close(traced(other), model(other))
    torch.testing.assert_close(exported.module()(other), model(other))
    assert not any("bone_peft" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("variant", ALL_VARIANTS)
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("hooked", [False, True], ids=["plain-linear", "black-box"])
def test_an_output_may_be_written_to(variant, shape, hooked):
    """As ``y += residual`` and ``nn.ReLU(inplace=True)`` do."""

    def gradients(name, in_place):
        case = Case(variant, torch.float32, (64, 32), 16, hooked=hooked)
        x = torch.randn(*shape, 64, generator=torch.Generator().manual_seed(3)).to(DEVICE).requires_grad_()
        with path(name):
            y = case(x * 1)
            if in_place:
                y += 0.1
                y[..., 1:].mul_(2)
                torch.relu_(y)
            else:
                y = torch.relu((y + 0.1) * torch.tensor([1.0, *[2.0] * 31], device=DEVICE))
            return torch.autograd.grad(y.square().sum(), [x, *case.params.values()])

    for name in ("torch", "few tokens", "plain"):
        for found, expected in zip(gradients(name, True), gradients("plain", False), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
