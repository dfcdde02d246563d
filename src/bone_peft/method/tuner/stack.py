"""A frozen layer, and the adapters that stand on it, as functions of ``x``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..compat.global_hooks import has_any_global_hook
from ..ops import dispatch
from ..variants import Below, Dropout, Params, Variant


@dataclass
class Frozen:
    """The base layer: a black box, whose weight is looked at only on demand.

    Attributes:
        call: the layer as a function.
        read_weight: gives its weight ``(out, in)``.
        read_bias: gives its bias ``(out,)``, or ``None``.
        layer: the module, if ``call`` does nothing but call it with ``x`` alone.
    """

    call: Callable[[Tensor], Tensor]
    read_weight: Callable[[], Tensor]
    read_bias: Callable[[], Tensor | None]
    layer: nn.Module | None = None

    @property
    def bias(self) -> Tensor | None:
        return self.read_bias()

    def output(self, x: Tensor) -> Tensor:
        return self.call(x)

    def weight(self, dtype: torch.dtype) -> Tensor:
        return self.read_weight().to(dtype)

    @property
    def frozen(self) -> bool:
        return self.layer is not None and not any(p.requires_grad for p in self.layer.parameters())

    def linear(self, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        layer = self.layer
        if type(layer) is not nn.Linear or "forward" in layer.__dict__ or _has_hooks(layer):
            return None
        weight, bias = layer.weight, layer.bias
        if not is_plain(weight, x) or not (bias is None or (is_plain(bias, x) and bias.is_contiguous())):
            return None
        return weight, bias


@dataclass
class Adapted:
    """One adapter on top of what is below it; itself something to stand on.

    So several active adapters compose in their order: Bone adds, Bat transforms the weight that is already
    transformed.
    """

    below: Below
    variant: type[Variant]
    params: Params
    dropout: Dropout | None

    frozen = False

    @property
    def bias(self) -> Tensor | None:
        return self.below.bias

    def linear(self, x: Tensor) -> None:
        return None

    def output(self, x: Tensor) -> Tensor:
        if not dispatch.plain():
            y = self.variant.fast_forward(x, self.params, self.below, self.dropout)
            if y is not None:
                return y
        dtype = dispatch.computing_dtype(x)
        params = {name: tensor.to(dtype) for name, tensor in self.params.items()}
        return self.variant.forward(x, params, self.below, self.dropout)

    def weight(self, dtype: torch.dtype) -> Tensor:
        weight = self.below.weight(dtype)
        params = {name: tensor.to(dtype) for name, tensor in self.params.items()}
        return weight + self.variant.delta_weight(params, weight)


def _has_hooks(layer: nn.Module) -> bool:
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or has_any_global_hook()
    )


def is_plain(tensor: Tensor, x: Tensor) -> bool:
    """A frozen tensor that lies beside ``x`` in the dtype to compute in: not sharded, quantized or offloaded."""
    return (
        type(tensor) in (nn.Parameter, Tensor)
        and not tensor.requires_grad
        and tensor.device == x.device
        and tensor.dtype == x.dtype == dispatch.computing_dtype(x)
    )
