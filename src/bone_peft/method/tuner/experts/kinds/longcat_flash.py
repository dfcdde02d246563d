"""LongCat-Flash's experts: those beyond the last that has matrices give back what they get."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..fused import FusedLinear
from . import interface


def takes(module: nn.Module) -> bool:
    weight = module._parameters.get("gate_up_proj")
    return type(module).__name__ == "LongcatFlashExperts" and weight is not None and weight.ndim == 3


def projections(module: Any) -> dict[str, FusedLinear]:
    weights = module._parameters
    return {
        "gate_up_proj": FusedLinear(weights["gate_up_proj"], None, ("gate_proj", "up_proj")),
        "down_proj": FusedLinear(weights["down_proj"], None, ("down_proj",)),
    }


def run(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """As :func:`interface.run`, and each token itself for those of its experts that have no matrices."""

    def gate(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return module.act_fn(gate) * up

    y = interface.computed(module, hidden_states, top_k_index, top_k_weights, gate, in_order=True)
    own = torch.where(top_k_index < module.num_routed_experts, 0, top_k_weights).sum(1, keepdim=True)
    return y + (hidden_states * own).to(y.dtype)
