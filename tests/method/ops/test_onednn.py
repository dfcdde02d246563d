"""oneDNN's products are the products, and layers that take them compute the same."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bone_peft.method.ops import onednn

from .layers import ONEDNN, Case, gradients

pytestmark = pytest.mark.skipif(not onednn._there, reason="needs oneDNN, which this PyTorch or processor has not")


def test_large_float32_on_a_cpu_alone_is_taken():
    a, b = torch.randn(512, 64), torch.randn(64, 576)
    assert onednn.takes(a, b)
    assert not onednn.takes(a[:8], b)
    assert not onednn.takes(a.double(), b.double())
    assert not onednn.takes(a.bfloat16(), b.bfloat16())
    assert not onednn.takes(a.to("meta"), b.to("meta"))
    with FakeTensorMode() as mode:
        assert not onednn.takes(mode.from_tensor(a), mode.from_tensor(b))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not onednn.takes(a, b)


@pytest.mark.parametrize("left", ["as it is", "transposed", "part of rows"])
@pytest.mark.parametrize("right", ["as it is", "transposed"])
@pytest.mark.parametrize("added", ["nothing", "matrix", "part of rows"])
@pytest.mark.parametrize("bias", ["none", "as it is", "every second", "expanded"])
def test_any_strides_against_float64(left, right, added, bias):
    n, k, m = 129, 37, 71
    a = {"as it is": torch.randn(n, k), "transposed": torch.randn(k, n).T, "part of rows": torch.randn(n, 50)[:, :k]}
    b = {"as it is": torch.randn(k, m), "transposed": torch.randn(m, k).T}
    c = {"nothing": None, "matrix": torch.randn(n, m), "part of rows": torch.randn(n, 90)[:, :m]}[added]
    bias = {
        "none": None,
        "as it is": torch.randn(m),
        "every second": torch.randn(2 * m)[::2],
        "expanded": torch.randn(1).expand(m),
    }[bias]
    before = None if c is None else c.clone()
    found = onednn.multiply_add(a[left], b[right], bias, c)
    expected = a[left].double() @ b[right].double()
    for term in (bias, c):
        expected = expected if term is None else expected + term.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    if c is not None:
        assert torch.equal(c, before)
        assert found.data_ptr() != c.data_ptr()


@pytest.mark.skipif(not ONEDNN, reason="the layers of these tests are on the GPU")
@pytest.mark.parametrize(("variant", "products"), [("bone", 3), ("bat", 1)])
@pytest.mark.parametrize("hooked", [False, True], ids=["plain-linear", "black-box"])
def test_layers_take_it(variant, products, hooked, monkeypatch):
    """That they compute the same is tested in ``test_paths``."""
    calls = []
    multiply_add = onednn.multiply_add
    monkeypatch.setattr(onednn, "multiply_add", lambda *args: calls.append(args) or multiply_add(*args))
    gradients(Case(variant, torch.float32, hooked=hooked), "onednn")
    assert len(calls) == products
