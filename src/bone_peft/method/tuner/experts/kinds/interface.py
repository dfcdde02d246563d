"""Experts that run through Transformers' experts interface: those of most models since Transformers 5.

What every implementation of the interface computes is computed here, by the module's own gate, activation and norm. The
implementation that the model's config names is followed at each call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bone_peft.errors import BoneError

from ....ops.routing import route
from ..fused import FusedLinear, number_of_experts

_GATE_UP, _UP, _DOWN = "gate_up_proj", "up_proj", "down_proj"

IN_ORDER = {None: True, "eager": True, "grouped_mm": True, "batched_mm": False}
"""By implementation, whether rows are sorted by experts."""


def takes(module: nn.Module) -> bool:
    if not all(hasattr(module, name) for name in ("_apply_gate", "is_transposed", "has_bias", "config")):
        return False
    weights = [module._parameters.get(name) for name in (_first(module), _DOWN)]
    return all(weight is not None and weight.ndim == 3 for weight in weights)


def projections(module: Any) -> dict[str, FusedLinear]:
    # Before Transformers 5.17, only gpt-oss had another order, and it was not said.
    side_by_side = getattr(module, "is_concatenated", type(module).__name__ != "GptOssExperts")
    first = _first(module)
    made = {}
    for name, parts in ((first, ("gate_proj", _UP) if first == _GATE_UP else (_UP,)), (_DOWN, (_DOWN,))):
        bias = module._parameters.get(f"{name}_bias") if module.has_bias else None
        takes_turns = len(parts) > 1 and not side_by_side
        made[name] = FusedLinear(module._parameters[name], bias, parts, module.is_transposed, takes_turns)
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
    if implementation not in IN_ORDER:
        raise BoneError(
            f"Experts with Bone adapters run as eager, grouped_mm or batched_mm, and the model is set to "
            f"{implementation}: call model.set_experts_implementation('grouped_mm')."
        )
    if getattr(module, "_is_expert_parallel", False):
        raise BoneError("Bone adapts experts that lie in one process: load the model without expert parallelism.")
    gate = module._apply_gate if getattr(module, "has_gate", True) else module.act_fn
    return computed(module, hidden_states, top_k_index, top_k_weights, gate, IN_ORDER[implementation])


def computed(
    module: Any, x: Tensor, index: Tensor, weights: Tensor, gate: Callable[[Tensor], Tensor], in_order: bool
) -> Tensor:
    """``run``, with what is between the projections, and rows in the order of their experts or not.

    Experts beyond those that there are give nothing.
    """
    first, down = module._modules[_first(module)], module._modules[_DOWN]
    number = number_of_experts(down)
    is_one = index < number
    weights = torch.where(is_one, weights, 0)
    routing = route(torch.where(is_one, index, 0), number_of_experts(first), in_order)
    y = gate(first(x, routing))
    ends = None if routing.ends is None else routing.ends[:number]
    y = down(y, replace(routing.of_rows, ends=ends))
    if getattr(module, "has_post_expert_norm", False):
        y = module.post_expert_norm(y)
    return routing.sums(y * routing.choices(weights)[:, None]).to(x.dtype)


def _first(module: Any) -> str:
    return _GATE_UP if getattr(module, "has_gate", True) else _UP
