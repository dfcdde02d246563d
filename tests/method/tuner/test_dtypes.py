"""Float32 adapters over a half precision base: nothing of the base's or the activations' size becomes float32."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bone_peft import BoneLinear

from ...models import ALL_VARIANTS, config_for, llama

variants = pytest.mark.parametrize("variant", ALL_VARIANTS)


class Float32Sizes(TorchDispatchMode):
    """Collects the number of elements of every float32 tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.sizes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.sizes |= {
            t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.dtype == torch.float32
        }
        return result


@variants
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_adapter_is_float32(variant, dtype):
    features, out, rows, r = 96, 64, 33, 16
    layer = BoneLinear(nn.Linear(features, out, dtype=dtype), "default", r, config=config_for(variant, r=r))
    layer.requires_grad_(False)
    params = layer._parameters_of("default")
    for parameter in params.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    x = torch.randn(rows, features, dtype=dtype, requires_grad=True)
    with Float32Sizes() as seen:
        y = layer(x)
        y.backward(torch.randn_like(y))
    assert y.dtype == x.grad.dtype == dtype
    assert all(parameter.grad.dtype == torch.float32 for parameter in params.values())
    allowed = {parameter.numel() for parameter in params.values()}
    assert seen.sizes and not seen.sizes & {rows * features, rows * out, features * out} - allowed


@variants
def test_adapter_is_float32_unless_told_otherwise(variant):
    def kinds(**kwargs):
        model = get_peft_model(llama().to(torch.bfloat16), config_for(variant), **kwargs)
        return {parameter.dtype for name, parameter in model.named_parameters() if ".bone_" in name}

    assert kinds() == {torch.float32}
    assert kinds(autocast_adapter_dtype=False) == {torch.bfloat16}


@variants
def test_autocast(variant):
    model = get_peft_model(llama(), config_for(variant)).train()
    ids = torch.randint(3, 64, (2, 7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, labels=ids)
    output.loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    plain = model(ids, labels=ids).loss
    torch.testing.assert_close(output.loss, plain, atol=0.02, rtol=0.02)
