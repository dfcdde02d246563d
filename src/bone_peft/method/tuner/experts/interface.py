"""Experts that run through Transformers' experts interface: those of most models since Transformers 5.

While one of its parameters is a layer, the module computes here what every implementation of the interface computes, by
the module's own gate, activation and norm. The implementation that the model's config names is followed at each call.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bone_peft.errors import BoneError

from ...ops.routing import route
from .fused import FusedLinear

_GATE_UP, _UP, _DOWN = "gate_up_proj", "up_proj", "down_proj"

_IN_ORDER = {None: True, "eager": True, "grouped_mm": True, "batched_mm": False}
"""By implementation, whether rows are sorted by experts."""


def takes(module: nn.Module) -> bool:
    """Whether ``module`` is of this kind, and has its parameters."""
    if not all(hasattr(module, name) for name in ("_apply_gate", "is_transposed", "has_bias", "config")):
        return False
    weights = [module._parameters.get(name) for name in (_first(module), _DOWN)]
    return all(weight is not None and weight.ndim == 3 for weight in weights)


def projections(module: Any) -> dict[str, FusedLinear]:
    """Its parameters as layers, by name."""
    # Before Transformers 5.17, only gpt-oss had another order, and it was not said.
    side_by_side = getattr(module, "is_concatenated", type(module).__name__ != "GptOssExperts")
    first = _first(module)
    fused = first == _GATE_UP
    made = {}
    for name, parts in ((first, ("gate_proj", _UP) if fused else (_UP,)), (_DOWN, (_DOWN,))):
        bias = module._parameters.get(f"{name}_bias") if module.has_bias else None
        made[name] = FusedLinear(
            module._parameters[name], bias, parts, module.is_transposed, len(parts) > 1 and not side_by_side
        )
    return made


def run(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The output of all experts.

    Args:
        module: the experts, whose projections are layers.
        hidden_states: ``(tokens, hidden)``.
        top_k_index: ``(tokens, k)``, the experts of each token.
        top_k_weights: ``(tokens, k)``, and their weights.

    Returns:
        ``(tokens, hidden)``, in the dtype of ``hidden_states``.

    Raises:
        BoneError: the model's config asks for an implementation that has its own kernels, or experts are spread over
            processes.
    """
    implementation = module.config._experts_implementation
    if implementation not in _IN_ORDER:
        raise BoneError(
            f"Experts with Bone adapters run as eager, grouped_mm or batched_mm, and the model is set to "
            f"{implementation}: call model.set_experts_implementation('grouped_mm')."
        )
    if getattr(module, "_is_expert_parallel", False):
        raise BoneError("Bone adapts experts that lie in one process: load the model without expert parallelism.")
    first, down = module._modules[_first(module)], module._modules[_DOWN]
    number = first.get_base_layer().experts if hasattr(first, "get_base_layer") else first.experts
    # One more than there are means none.
    is_one = top_k_index < number
    top_k_weights = torch.where(is_one, top_k_weights, 0)
    routing, places = route(torch.where(is_one, top_k_index, 0), number, _IN_ORDER[implementation])
    y = first(hidden_states, routing)
    y = module._apply_gate(y) if getattr(module, "has_gate", True) else module.act_fn(y)
    y = down(y, routing.of_rows)
    if getattr(module, "has_post_expert_norm", False):
        y = module.post_expert_norm(y)
    weights = top_k_weights.reshape(-1)
    y = y * (weights if places is None else weights[places])[:, None]
    if places is not None:
        back = torch.empty_like(places)
        back[places] = torch.arange(len(places), device=places.device)
        y = y[back]
    return y.view(*top_k_index.shape, -1).sum(1).to(hidden_states.dtype)


def _first(module: Any) -> str:
    return _GATE_UP if getattr(module, "has_gate", True) else _UP


class _WithLayers(nn.Module):
    """A module of experts some of whose parameters are layers."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs:
            bound = inspect.signature(_original(self).forward).bind(self, *args, **kwargs)
            args = tuple(bound.arguments.values())[1:]
        return run(self, *args)

    def __reduce__(self) -> Any:
        # The class is made here, and has no place to be found at.
        return _restored, (_original(self),), self.__dict__


def _original(module: nn.Module) -> Any:
    """The model's own class."""
    return type(module).__mro__[2]


def _restored(cls: Any) -> nn.Module:
    kind = _with_layers(cls)
    return kind.__new__(kind)


@cache
def _with_layers(cls: Any) -> type[nn.Module]:
    return type(cls.__name__, (_WithLayers, cls), {"__module__": cls.__module__})


def unfold(module: nn.Module) -> None:
    """Make the parameters of these experts layers."""
    module.__dict__["_bone_order"] = list(module._parameters)
    for name, layer in projections(module).items():
        del module._parameters[name]
        module._parameters.pop(f"{name}_bias", None)
        module.add_module(name, layer)
    kind: Any = type(module)
    module.__class__ = _with_layers(kind)


def is_unfolded(module: nn.Module) -> bool:
    """Whether :func:`unfold` was called on it."""
    return isinstance(module, _WithLayers)


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """What stands in the place of its parameters, by name."""
    return {name: module._modules[name] for name in (_first(module), _DOWN)}  # type: ignore[misc]


def fold(module: nn.Module) -> None:
    """Make the layers parameters again. None of them carries an adapter."""
    found: dict[str, Any] = {}
    for name, layer in layers(module).items():
        del module._modules[name]
        found[name] = layer._parameters["weight"]
        if layer._parameters["bias"] is not None:
            found[f"{name}_bias"] = layer._parameters["bias"]
    module.__class__ = _original(module)
    order = module.__dict__.pop("_bone_order")
    module._parameters.update(found)
    rest = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({name: rest.pop(name) for name in order if name in rest} | rest)
