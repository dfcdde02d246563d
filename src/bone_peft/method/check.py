"""``bone_peft.check``: try an adapted model out, and say where its adapters do not do what they should."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bone_peft.errors import BoneError

from .tuner.layer import BoneLayer


@dataclass(frozen=True)
class Check:
    """What a trial found.

    Attributes:
        layers: how many layers have an adapter.
        no_effect: layers whose adapter changes nothing in the model's output.
        no_gradient: layers whose adapter gets no gradient, in training or in evaluation.
        merge_error: largest difference of the merged model's output from the unmerged one's, over the largest value of
            the latter; ``None`` if the model cannot be merged.
        merge_refused: why it cannot be merged, or ``None``.
        tolerance: up to which ``merge_error`` counts as rounding.
    """

    layers: int
    no_effect: list[str] = field(default_factory=list)
    no_gradient: list[str] = field(default_factory=list)
    merge_error: float | None = None
    merge_refused: str | None = None
    tolerance: float = 1e-4

    @property
    def right(self) -> bool:
        """Whether every adapter has an effect and a gradient, and merges to what it computed or says that it cannot."""
        merges = self.merge_error is None or self.merge_error <= self.tolerance
        return not self.no_effect and not self.no_gradient and merges

    def __str__(self) -> str:
        lines = [f"{self.layers} adapted layers"]
        lines += [f"no effect: {name}" for name in self.no_effect]
        lines += [f"no gradient: {name}" for name in self.no_gradient]
        if self.merge_refused is not None:
            lines.append(f"not merged: {self.merge_refused}")
        elif self.merge_error is not None:
            verdict = "as it should" if self.merge_error <= self.tolerance else "WRONG"
            lines.append(f"merged differs from unmerged by {self.merge_error:.1e} ({verdict})")
        return "\n".join(lines)


def check(model: nn.Module, inputs: Any, *, tolerance: float | None = None) -> Check:
    """Run an adapted model forward and backward with random adapters, merge it, and compare.

    The model is left as it was: values of the adapters, gradients, mode, random state.

    Args:
        model: with active Bone adapters, unmerged.
        inputs: of one batch: keyword arguments, a tuple of positional ones, or a tensor.
        tolerance: of the merged model's difference; by default 1e-4, and 0.05 for weights of half precision.

    Returns:
        The findings; ``print`` shows them, ``right`` sums them up.

    Raises:
        BoneError: no active Bone adapter, or adapters that are merged already.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BoneLayer)}
    active = {name: layer for name, layer in layers.items() if set(layer.active_adapters) & set(layer.bone_variant)}
    if not active:
        raise BoneError("This model has no active Bone adapter: there is nothing to check.")
    if any(layer.merged for layer in layers.values()):
        raise BoneError("Adapters of this model are merged: call unmerge_adapter() before checking it.")
    if tolerance is None:
        half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
        tolerance = 0.05 if half else 1e-4
    with _as_it_was(model, active):
        no_gradient = {name for mode in (True, False) for name in _without_gradient(model.train(mode), inputs, active)}
        no_effect = [name for name in sorted(no_gradient) if not _changes_anything(model, inputs, active[name])]
        error, refused = _merge_error(model, inputs)
    return Check(len(active), no_effect, sorted(no_gradient), error, refused, tolerance)


def _trained(layer: BoneLayer) -> list[nn.Parameter]:
    names = [name for name in layer.active_adapters if name in layer.bone_variant]
    return [parameter for name in names for parameter in layer._parameters_of(name).values()]  # type: ignore[misc]


@contextmanager
def _as_it_was(model: nn.Module, layers: Mapping[str, BoneLayer]) -> Iterator[None]:
    """Random adapters inside the block; what was there before comes back."""
    parameters = list({id(p): p for p in model.parameters()}.values())
    before = [(p, p.grad, p.requires_grad) for p in parameters]
    values = [(p, p.detach().clone()) for layer in layers.values() for p in _trained(layer)]
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in parameters if p.is_cuda and p.device.index is not None})
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            for parameter, _ in values:
                parameter.requires_grad_(True)
                nn.init.normal_(parameter.data, std=0.05)
            yield
    finally:
        for parameter, value in values:
            parameter.data.copy_(value)
        for parameter, gradient, required in before:
            parameter.grad, parameter.requires_grad = gradient, required
        for module, training in modes:
            module.training = training


def _output(model: nn.Module, inputs: Any) -> Tensor:
    """All floating point numbers of the model's output, one after the other."""
    inputs = copy.copy(inputs)
    torch.manual_seed(1)
    if isinstance(inputs, Mapping):
        output = model(**inputs)
    else:
        output = model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
    return torch.cat([tensor.float().flatten() for tensor in _tensors(output)])


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            if key != "past_key_values":
                yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)


def _without_gradient(model: nn.Module, inputs: Any, layers: Mapping[str, BoneLayer]) -> list[str]:
    output = _output(model, inputs)
    model.zero_grad()
    (output * torch.randn_like(output)).sum().backward()
    return [name for name, layer in layers.items() if any(p.grad is None or not p.grad.any() for p in _trained(layer))]


@torch.no_grad()
def _changes_anything(model: nn.Module, inputs: Any, layer: BoneLayer) -> bool:
    with_it = _output(model, inputs)
    values = [(p, p.clone()) for p in _trained(layer)]
    for parameter, _ in values:
        parameter.zero_()
    without = _output(model, inputs)
    for parameter, value in values:
        parameter.copy_(value)
    return not torch.equal(with_it, without)


@torch.no_grad()
def _merge_error(model: Any, inputs: Any) -> tuple[float | None, str | None]:
    unmerged = _output(model, inputs)
    try:
        model.merge_adapter()
    except ValueError as error:
        return None, str(error)
    merged = _output(model, inputs)
    model.unmerge_adapter()
    return float((merged - unmerged).abs().max() / unmerged.abs().max().clamp_min(1e-12)), None
