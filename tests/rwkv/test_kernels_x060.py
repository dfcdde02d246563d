"""The way to flash-linear-attention's kernels for RWKV-6; on a GPU that has them, also what they give."""

import pytest
import torch

from bone_peft.rwkv.kernels import takes
from bone_peft.rwkv.kernels_x060 import kernels, recurrence
from bone_peft.rwkv.recurrence_x060 import recurrence as products
from bone_peft.rwkv.token_shift import all_there

from .conftest import assert_same_with_gradients, stand_in_for
from .test_kernels import on_gpu
from .test_x060 import by_token, inputs


@pytest.fixture
def stand_in(monkeypatch):
    """The package's function as it documents itself, token by token."""

    def chunk_rwkv6(r, k, v, w, u, scale, *, initial_state, output_final_state):
        assert scale == 1 and output_final_state
        assert r.dtype == k.dtype == v.dtype == u.dtype
        assert bool((w <= 0).all())
        assert not torch.is_autocast_enabled("cpu")
        return by_token(r, w, k, v, u, initial_state)

    stand_in_for(monkeypatch, chunk_rwkv6)


@pytest.mark.parametrize("masked", [False, True])
def test_the_kernels_are_asked_for_the_same_function(stand_in, masked):
    values = inputs(2, 20, torch.float32)
    mask = torch.rand(2, 20) > 0.3 if masked else None

    def asked(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return kernels(*arguments)

    assert_same_with_gradients(products, asked, values, mask, rtol=1e-4, atol=1e-5)


def test_a_cpu_takes_the_products():
    values = inputs(2, 20, torch.float32)
    assert not takes(values[3].bfloat16())
    for mask in (None, all_there(2, 20, torch.device("cpu"))):
        for x, y in zip(recurrence(*values, mask), products(*values), strict=True):
            assert torch.equal(x, y)


@on_gpu
@pytest.mark.parametrize("time", [16, 17, 200])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_on_a_gpu_output_state_and_gradients_are_those_of_float64(time, masked, hard):
    r, w, k, v, u, state = (x.detach().cuda() for x in inputs(2, time, torch.float32, hard, width=64))
    r, k, v, u = (x.bfloat16() for x in (r, k / 8, v, u))
    values = [x.requires_grad_() for x in (r, w, k, v, u, state)]
    mask = torch.rand(2, time, device="cuda") > 0.3 if masked else None
    assert takes(values[3])
    exact = [x.detach().double().requires_grad_() for x in values]
    found, expected = recurrence(*values, mask), by_token(*exact, mask)
    directions = [torch.randn_like(x) for x in found]
    got = torch.autograd.grad(found, values, directions)
    wanted = torch.autograd.grad(expected, exact, [x.double() for x in directions])
    for x, y in zip((*found, *got), (*expected, *wanted), strict=True):
        assert float((x.double() - y).norm() / y.norm()) < 2e-2
