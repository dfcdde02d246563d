"""Rows with blocks of their own, in the kernel: against each row alone, in float64."""

import pytest
import torch
from torch import nn

from bone_peft.method.ops import mixed_bone
from bone_peft.method.tuner.mixed_rows import add
from bone_peft.method.variants.bone import Bone

from .layers import DEVICE, HALF, KERNELS, distance, path

pytestmark = pytest.mark.skipif(not KERNELS, reason="needs a GPU, or TRITON_INTERPRET=1")

ROWS = ["a", "__base__", "b", "c", "a"]


def adapters(r, out, dtype=torch.float32, **shapes):
    made = {name: torch.randn(r, shapes.get(name, out), device=DEVICE) * 0.1 for name in "abc"}
    return {name: (Bone, {"bone_block": nn.Parameter(t.to(dtype), requires_grad=False)}) for name, t in made.items()}


@pytest.mark.parametrize("between", [(), (1,), (3,), (2, 3), (20,)])
@pytest.mark.parametrize(("r", "features", "out"), [(16, 96, 160), (24, 100, 72), (64, 256, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_triton_gives_each_row_its_own(between, r, features, out, dtype, monkeypatch):
    given = adapters(r, out, dtype)
    x = torch.randn(len(ROWS), *between, features, device=DEVICE).to(HALF)
    x[1] = 1e4  # Its block sums are infinite, and it has no adapter.
    y = torch.randn(len(ROWS), *between, 2 * out, device=DEVICE).to(HALF)[..., :out]
    before = y.clone()
    monkeypatch.setattr(Bone, "addition", None)  # The other way.
    with path("triton"):
        got = add(y, x, ROWS, given)
    assert torch.equal(y, before) and torch.equal(got[1], y[1])
    for i, name in enumerate(ROWS):
        if name == "__base__":
            continue
        blocks = torch.nn.functional.pad(x[i].double(), (0, -features % r)).unflatten(-1, (-1, r))
        wanted = y[i].double() + blocks.sum(-2) @ given[name][1]["bone_block"].double()
        assert distance(got[i], wanted) < (2e-3 if HALF is torch.float16 else 1e-2)


def test_what_triton_does_not_take():
    given = {name: params["bone_block"] for name, (_, params) in adapters(16, 32).items()}
    x, y = torch.randn(3, 4, 64, device=DEVICE).to(HALF), torch.randn(3, 4, 32, device=DEVICE).to(HALF)
    with path("triton"):
        assert mixed_bone.takes(y, x, list(given.values()))
        assert not mixed_bone.takes(y.float(), x, list(given.values()))
        assert not mixed_bone.takes(y, x, [given["a"], nn.Parameter(torch.randn(16, 32, device=DEVICE))])
        assert not mixed_bone.takes(y, x, [given["a"], nn.Parameter(given["b"][:, ::2].detach())])
        assert not mixed_bone.takes(y, x, [given["a"], given["b"] * 2])
    with path("torch"):
        assert not mixed_bone.takes(y, x, list(given.values()))
