"""The way to flash-linear-attention's kernels; on a GPU that has them, also what they give."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch

from bone_peft.method.ops import dispatch
from bone_peft.rwkv.kernels import LOWEST, _installed, kernels, recurrence, takes
from bone_peft.rwkv.recurrence import recurrence as products

from .conftest import assert_same_with_gradients, stand_in_for
from .test_recurrence import by_token, inputs


@pytest.fixture
def stand_in(monkeypatch):
    """The package's function as it documents itself, token by token."""

    def chunk_rwkv7(r, w, k, v, a, b, scale, *, initial_state, output_final_state, lower_bound):
        assert scale == 1 and output_final_state
        assert r.dtype == k.dtype == v.dtype == a.dtype == b.dtype
        assert bool((w >= lower_bound).all()) and bool((w <= 0).all())
        assert not torch.is_autocast_enabled("cpu")
        return by_token(r, w.exp(), k, v, a, b, initial_state)

    stand_in_for(monkeypatch, chunk_rwkv7)


@pytest.mark.parametrize("masked", [False, True])
def test_the_kernels_are_asked_for_the_same_function(stand_in, masked):
    values = inputs(2, 20, torch.float32)
    mask = torch.rand(2, 20) > 0.3 if masked else None

    def asked(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return kernels(*arguments)

    assert_same_with_gradients(products, asked, values, mask, rtol=1e-4, atol=1e-5)


def test_the_lower_bound_is_the_models():
    from rwkv7_hf.modeling_rwkv7 import RWKV7_DECAY_BASE

    assert pytest.approx(-RWKV7_DECAY_BASE) == LOWEST


def test_a_cpu_takes_the_products():
    values = inputs(1, 20, torch.float32)
    assert not takes(values[3].bfloat16())
    for x, y in zip(recurrence(*values), products(*values), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(("found", "wanted"), [("0.5.9", False), ("0.6.0", True), ("1.0", True), (None, False)])
def test_an_old_package_is_as_good_as_none(monkeypatch, found, wanted):
    def version(name):
        assert name == "fla-core"
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr("bone_peft.rwkv.kernels.version", version)
    assert _installed.__wrapped__() is wanted


on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or not _installed() or dispatch.forced is not None,
    reason="needs a GPU and fla-core, and no path forced",
)


def on_the_gpu(time, width=64):
    """Values as a model in bfloat16 has them: all in it, but for decay and state."""
    r, w, k, v, a, b, state = (x.detach().cuda() for x in inputs(2, time, torch.float32, width=width))
    r, k, v, a, b = (x.bfloat16() for x in (r, k / width**0.5, v, a, b))
    return [x.requires_grad_() for x in (r, w, k, v, a, b, state)]


@on_gpu
@pytest.mark.parametrize("time", [16, 17, 200])
@pytest.mark.parametrize("masked", [False, True])
def test_on_a_gpu_output_state_and_gradients_are_those_of_float64(time, masked):
    values = on_the_gpu(time)
    mask = torch.rand(2, time, device="cuda") > 0.3 if masked else None
    assert takes(values[3])
    exact = [x.detach().double().requires_grad_() for x in values]
    found, expected = recurrence(*values, mask), by_token(*exact, mask)
    directions = [torch.randn_like(x) for x in found]
    got = torch.autograd.grad(found, values, directions)
    wanted = torch.autograd.grad(expected, exact, [x.double() for x in directions])
    for x, y in zip((*found, *got), (*expected, *wanted), strict=True):
        assert float((x.double() - y).norm() / y.norm()) < 2e-2


@on_gpu
@pytest.mark.parametrize("path", [dispatch.PLAIN, dispatch.TORCH])
def test_a_forced_path_keeps_them_out(monkeypatch, path):
    monkeypatch.setattr(dispatch, "forced", path)
    assert not takes(on_the_gpu(20)[3])
