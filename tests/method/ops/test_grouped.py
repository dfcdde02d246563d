"""Products by expert, along each path, beside the same computed expert by expert in float64."""

from types import SimpleNamespace

import pytest
import torch

from bone_peft.method.ops.routing import _wide_enough, route
from bone_peft.method.variants import VARIANTS

from .layers import DEVICE, HALF, KERNELS, distance, path

EXPERTS, K, R, BLOCKS = 7, 3, 16, 5

PATHS = [("torch", torch.float32), ("torch", torch.bfloat16)] + ([("triton", HALF)] if KERNELS else [])
paths = pytest.mark.parametrize(("name", "dtype"), PATHS)
cases = pytest.mark.parametrize(
    ("tokens", "has_rows", "kept"),
    [(1, False, torch.float32), (6, True, None), (70, True, torch.float32), (70, False, None)],
)


def routing_of(tokens):
    """Most go to one expert, none to two, and some twice to the same."""
    torch.manual_seed(3)
    chosen = torch.randint(EXPERTS, (tokens, K))
    chosen[chosen == 1] = 4
    chosen[chosen == 6] = 4
    return chosen, route(chosen.to(DEVICE), EXPERTS, in_order=True)


def drawn(*shape, dtype):
    return torch.randn(shape).to(dtype=dtype, device=DEVICE).requires_grad_()


def case(tokens, has_rows, dtype):
    """Choices, their routing, and inputs of tokens or of rows."""
    chosen, routing = routing_of(tokens)
    x = drawn(tokens * K if has_rows else tokens, BLOCKS * R, dtype=dtype)
    return chosen, routing.of_rows if has_rows else routing, x


def gradients(outputs, inputs):
    torch.manual_seed(4)
    seeds = [torch.randn(y.shape).to(y) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, inputs, seeds)]


def assert_close(found, exact, dtype):
    eps = torch.finfo(dtype).eps
    for mine, truth in zip(found, exact, strict=True):
        assert mine.isfinite().all()
        assert distance(mine, truth) <= 4 * eps


@paths
@cases
def test_input_shared_bat(name, dtype, tokens, has_rows, kept):
    chosen, routing, x = case(tokens, has_rows, dtype)
    blocks = drawn(EXPERTS, BLOCKS, R, R, dtype=kept or dtype)
    with path(name):
        found = gradients(routing.bat_input(x, blocks), (x, blocks))
    assert [t.dtype for t in found] == [dtype, dtype, dtype, blocks.dtype]

    x64, blocks64 = (t.detach().to(dtype).double().requires_grad_() for t in (x, blocks))
    z, v = [], []
    for row, place in enumerate(chosen.flatten().to(DEVICE).sort(stable=True).indices.tolist()):
        own = (x64[row] if has_rows else x64[place // K]).view(BLOCKS, R)
        u = [blocks64[chosen.flatten()[place], i] @ own[i] for i in range(BLOCKS)]
        z.append(x64[row if has_rows else place // K] + torch.cat(u))
        v.append(torch.stack(u).sum(0))
    assert_close(found, gradients((torch.stack(z), torch.stack(v)), (x64, blocks64)), dtype)


@paths
@cases
def test_bone(name, dtype, tokens, has_rows, kept):
    chosen, routing, x = case(tokens, has_rows, dtype)
    weight, block = drawn(BLOCKS * R, 40, dtype=dtype).detach(), drawn(EXPERTS, R, 40, dtype=kept or dtype)
    with path(name):
        below = SimpleNamespace(output=lambda x, routing: routing.rows(x @ weight))
        y = VARIANTS["bone"].forward_by_expert(x, {"bone_block": block}, below, None, routing)
        found = gradients((y,), (x, block))
    assert [t.dtype for t in found] == [dtype, dtype, block.dtype]

    x64, block64 = (t.detach().to(dtype).double().requires_grad_() for t in (x, block))
    order = chosen.flatten().to(DEVICE).sort(stable=True).indices
    own = x64 if has_rows else x64[order // K]
    blocks = block64[chosen.flatten().to(DEVICE)[order]]
    exact = own @ weight.double() + torch.einsum("tc,tco->to", own.view(len(own), BLOCKS, R).sum(1), blocks)
    assert_close(found, gradients((exact,), (x64, block64)), dtype)


@paths
@pytest.mark.parametrize("tokens", [1, 70])
def test_tokens_to_rows_and_back(name, dtype, tokens):
    routing = routing_of(tokens)[1]
    x, factor = drawn(tokens, 33, dtype=dtype), drawn(tokens, K, dtype=dtype)
    with path(name):
        y = routing.sums(routing.rows(x) * routing.choices(factor)[:, None])
        found = gradients((y,), (x, factor))
    x64, factor64 = (t.detach().double().requires_grad_() for t in (x, factor))
    exact = gradients((x64 * factor64.sum(1, keepdim=True),), (x64, factor64))
    assert_close(found, exact, dtype)


def test_gradients_of_gradients():
    routing = routing_of(4)[1]
    x = drawn(4, 2, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: routing.sums(routing.rows(x) ** 2), (x,))


def test_matrices_of_any_width_are_one_product():
    matrices = [torch.randn(EXPERTS, *shape) for shape in ((16, 13), (13, 3), (3, 24))]
    wide = _wide_enough(matrices)
    assert [tuple(m.shape[1:]) for m in wide] == [(16, 16), (16, 8), (8, 24)]
    torch.testing.assert_close(wide[0] @ wide[1] @ wide[2], matrices[0] @ matrices[1] @ matrices[2])
