"""One adapted layer, run along any path, and its float64 truth."""

import os
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from bone_peft.method.ops import bone_layer, dispatch, onednn
from bone_peft.method.tuner.stack import Adapted, Frozen
from bone_peft.method.variants import VARIANTS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
KERNELS = INTERPRETED or DEVICE == "cuda"

# Triton's interpreter has no bfloat16.
HALF = torch.float16 if INTERPRETED else torch.bfloat16
ONEDNN = onednn._there and DEVICE == "cpu"
PATHS = [("torch", torch.float32), ("torch", torch.bfloat16), ("few tokens", torch.bfloat16)]
PATHS += [("onednn", torch.float32)] if ONEDNN else []
PATHS += [("triton", HALF)] if KERNELS else []


@contextmanager
def path(name):
    """Force a path.

    ``onednn`` is ``torch`` with all its float32 products by oneDNN, also small ones; ``few tokens`` is what a GPU takes
    for them with Bone.
    """
    before = dispatch.forced, onednn.SMALLEST, bone_layer._few_tokens
    if name == "onednn":
        name, onednn.SMALLEST = "torch", 1
    if name == "few tokens":
        name, bone_layer._few_tokens = None, lambda x, block: True
    dispatch.forced = name
    try:
        yield
    finally:
        dispatch.forced, onednn.SMALLEST, bone_layer._few_tokens = before


class Case:
    """A frozen linear layer and the tensors of one adapter on it, the same for the same seed."""

    def __init__(self, variant, dtype, features=(96, 64), r=16, bias=True, hooked=False):
        torch.manual_seed(1)
        self.variant = VARIANTS[variant]
        self.linear = nn.Linear(*features, bias=bias).to(dtype=dtype, device=DEVICE).requires_grad_(False)
        shapes = self.variant.shapes(*features, r)
        self.params = {name: (torch.randn(s) * 0.1).to(DEVICE).requires_grad_() for name, s in shapes.items()}
        if hooked:
            self.linear.register_forward_hook(lambda *_: None)
        self.x = torch.randn(3, 7, features[0]).to(dtype=dtype, device=DEVICE).requires_grad_()

    def __call__(self, x):
        frozen = Frozen(self.linear, lambda: self.linear.weight, lambda: self.linear.bias, self.linear)
        return Adapted(frozen, self.variant, self.params, None).output(x)

    def as_float64(self):
        """This case in float64, with the same rounded numbers."""
        other = object.__new__(Case)
        other.variant = self.variant
        other.linear = nn.Linear(*self.linear.weight.T.shape, bias=self.linear.bias is not None)
        other.linear.load_state_dict(self.linear.state_dict())
        other.linear = other.linear.to(dtype=torch.float64, device=DEVICE).requires_grad_(False)
        with torch.no_grad():
            other.linear.weight.copy_(self.linear.weight)
            if self.linear.bias is not None:
                other.linear.bias.copy_(self.linear.bias)
        other.params = {k: t.detach().double().requires_grad_(t.requires_grad) for k, t in self.params.items()}
        other.x = self.x.detach().double().requires_grad_(self.x.requires_grad)
        return other


def gradients(case, name, x=None, run=None, context=None):
    """Output and gradients of ``case`` along path ``name``: of the input, then of the trained tensors."""
    x = case.x if x is None else x
    wanted = [t for t in (x, *case.params.values()) if t.requires_grad]
    with path(name):
        with context or nullcontext():
            y = (run or case)(x)
        torch.manual_seed(2)
        dy = torch.randn(y.shape).to(dtype=y.dtype, device=y.device)
        return [y.detach(), *torch.autograd.grad(y, wanted, dy)]


def distance(found, truth):
    """``|found - truth| / |truth|``."""
    truth = truth.double()
    return ((found.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


def assert_as_good_as(found, plain, truth):
    """``found`` is no further from the truth than rounding takes the definition itself, twice over."""
    assert len(found) == len(plain) == len(truth)
    for mine, definition, exact in zip(found, plain, truth, strict=True):
        assert mine.shape == definition.shape
        assert mine.dtype == definition.dtype
        assert mine.isfinite().all()
        eps = torch.finfo(mine.dtype if mine.dtype == torch.float64 else definition.dtype).eps
        assert distance(mine, exact) <= 2 * max(distance(definition, exact), eps)
