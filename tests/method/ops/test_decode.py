"""One token at a time takes a kernel of its own."""

import pytest
import torch

from bone_peft.method.ops import decode

from .layers import HALF, KERNELS, Case, distance, path


@pytest.mark.skipif(not KERNELS, reason="needs a GPU, or Triton's interpreter")
@pytest.mark.parametrize(("features", "r"), [((96, 64), 16), ((100, 72), 16), ((1100, 24), 48)])
@pytest.mark.parametrize("bias", [False, True])
def test_one_token_on_triton(features, r, bias, monkeypatch):
    case = Case("bone", HALF, features, r, bias=bias)
    truth = case.as_float64()
    x = case.x[:1, :1].detach()
    calls = []
    forward = decode.linear_bone_token
    monkeypatch.setattr(decode, "linear_bone_token", lambda *a: calls.append(a) or forward(*a))
    with torch.no_grad(), path("triton"):
        y = case(x)
    assert len(calls) == 1
    assert y.shape == (1, 1, features[1])
    with path("plain"):
        assert distance(y, truth(x.double())) < 2 * torch.finfo(HALF).eps


@pytest.mark.skipif(not KERNELS, reason="needs a GPU, or Triton's interpreter")
def test_a_token_that_trains_takes_the_other_way_on_triton(monkeypatch):
    case = Case("bone", HALF)
    monkeypatch.setattr(decode, "linear_bone_token", lambda *a: pytest.fail("no gradient comes through here"))
    with path("triton"):
        case(case.x[:1, :1]).sum().backward()
    assert case.params["bone_block"].grad.any()
