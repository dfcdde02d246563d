"""The bare model: what it computes, and which of its linear layers it uses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .inputs import Inputs

_NOT_COMPUTED = ("past_key_values", "encoder_last_hidden_state")


@dataclass
class Usage:
    """Names of linear layers.

    Attributes:
        all: all of them.
        called: those that the model calls.
        used: those on whose weight the output depends, called or not.
    """

    all: set[str]
    called: set[str]
    used: set[str]


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that ``target_modules="all-linear"`` means."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def run(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    """All numbers that the model returns, in one row."""
    torch.manual_seed(0)
    return torch.cat([tensor.flatten() for tensor in _tensors(model(**inputs))])


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        at_least_single = torch.promote_types(output.dtype, torch.float32)
        return [output.to(at_least_single)] if output.is_floating_point() else []
    if hasattr(output, "to_tuple"):
        output = [value for name, value in output.items() if name not in _NOT_COMPUTED]
    return [tensor for value in output for tensor in _tensors(value)] if isinstance(output, (list, tuple)) else []


def loss_of(output: Tensor) -> Tensor:
    """Something that depends on every number of the output."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=output.dtype)
    return (output * weights).mean() * 100


def usage_of(model: nn.Module, inputs: Inputs) -> Usage:
    """Find out by running it, forward and backward."""
    model = copy.deepcopy(model).requires_grad_(True)
    layers = linear_layers(model)
    called: set[str] = set()
    for name, layer in layers.items():
        layer.weight = nn.Parameter(layer.weight.detach().clone())  # It may be another layer's as well.
        layer.register_forward_hook(lambda *_, name=name: called.add(name))
    loss_of(run(model, inputs)).backward()
    used = {name for name, layer in layers.items() if layer.weight.grad is not None and layer.weight.grad.any()}
    return Usage(set(layers), called, used)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, over the largest value of ``b``."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) if a.shape == b.shape else float("inf")
