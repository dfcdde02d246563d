"""oneDNN's products are the products, and layers that take them compute the same."""

import pytest
import torch

from bone_peft.ops import onednn

from .layers import Case
from .test_paths import SHAPES, check

pytestmark = pytest.mark.skipif(not onednn._there, reason="needs oneDNN, which this PyTorch or processor has not")


def test_large_float32_on_a_cpu_alone_is_taken():
    a, b = torch.randn(512, 64), torch.randn(64, 576)
    assert onednn.takes(a, b)
    assert not onednn.takes(a[:8], b)
    assert not onednn.takes(a.double(), b.double())
    assert not onednn.takes(a.bfloat16(), b.bfloat16())
    assert not onednn.takes(a.to("meta"), b.to("meta"))


@pytest.mark.parametrize("left", ["as it is", "transposed", "part of rows"])
@pytest.mark.parametrize("right", ["as it is", "transposed"])
@pytest.mark.parametrize("added", ["nothing", "bias", "matrix", "bias and matrix"])
def test_any_strides_against_float64(left, right, added):
    n, k, m = 129, 37, 71
    a = {"as it is": torch.randn(n, k), "transposed": torch.randn(k, n).T, "part of rows": torch.randn(n, 50)[:, :k]}
    b = {"as it is": torch.randn(k, m), "transposed": torch.randn(m, k).T}
    bias = torch.randn(m) if "bias" in added else None
    c = torch.randn(n, m) if "matrix" in added else None
    before = None if c is None else c.clone()
    found = onednn.multiply_add(a[left], b[right], bias, c)
    expected = a[left].double() @ b[right].double()
    for term in (bias, c):
        expected = expected if term is None else expected + term.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    if c is not None:
        assert torch.equal(c, before)
        assert found.data_ptr() != c.data_ptr()


@pytest.mark.parametrize(("variant", "features", "r"), SHAPES)
@pytest.mark.parametrize("hooked", [False, True], ids=["plain-linear", "black-box"])
def test_layers_agree_with_the_definition(variant, features, r, hooked, monkeypatch):
    monkeypatch.setattr(onednn, "SMALLEST", 0)
    check(Case(variant, torch.float32, features, r, hooked=hooked), "torch")
