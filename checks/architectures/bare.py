"""The bare model: what it computes, and which of its linear layers and stacks of matrices it uses."""

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
    """Names of linear layers, and of parameters that are stacks of matrices, such as a layer's experts.

    Attributes:
        weights: the parameter of each of them.
        called: the layers that the model calls.
        used: those on whose weight the output depends, called or not.
    """

    weights: dict[str, str]
    called: set[str]
    used: set[str]

    @property
    def all(self) -> set[str]:
        return set(self.weights)

    @property
    def stacks(self) -> set[str]:
        return {name for name, weight in self.weights.items() if name == weight}


def matrices(model: nn.Module) -> dict[str, str]:
    """What ``target_modules="all-linear"`` means, or says that it leaves out, and the parameter of each."""
    linear = {n: f"{n}.weight" for n, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    stacks = {
        f"{name}.{key}": f"{name}.{key}"
        for name, module in model.named_modules()
        if name and not isinstance(module, (nn.modules.conv._ConvNd, nn.Embedding))
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and min(parameter.shape) > 1
    }
    return linear | stacks


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
    weights = matrices(model)
    called: set[str] = set()
    own: dict[str, Tensor] = {}
    for name, weight in weights.items():
        module_name, _, key = weight.rpartition(".")
        module = model.get_submodule(module_name)
        own[name] = nn.Parameter(getattr(module, key).detach().clone())  # It may be another layer's as well.
        setattr(module, key, own[name])
        if name != weight:
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    loss_of(run(model, inputs)).backward()
    return Usage(weights, called, {name for name, w in own.items() if w.grad is not None and w.grad.any()})


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, over the largest value of ``b``."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) if a.shape == b.shape else float("inf")
