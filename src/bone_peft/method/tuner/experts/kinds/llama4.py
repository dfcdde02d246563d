"""Llama 4's experts: every expert is given every token, scaled by the router, with zeros where it was not chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ....ops.routing import Routing
from ..fused import FusedLinear, number_of_experts


def takes(module: nn.Module) -> bool:
    weight = module._parameters.get("gate_up_proj")
    return type(module).__name__ == "Llama4TextExperts" and weight is not None and weight.ndim == 3


def projections(module: Any) -> dict[str, FusedLinear]:
    weights = module._parameters
    return {
        "gate_up_proj": FusedLinear(weights["gate_up_proj"], None, ("gate_proj", "up_proj"), is_transposed=True),
        "down_proj": FusedLinear(weights["down_proj"], None, ("down_proj",), is_transposed=True),
    }


def run(module: Any, hidden_states: Tensor) -> Tensor:
    """The output of each expert.

    Args:
        module: the experts, whose projections are layers.
        hidden_states: ``(experts * tokens, hidden)``, all tokens for the first expert first.

    Returns:
        The same shape, the output of each expert where its input was.
    """
    first, down = module.gate_up_proj, module.down_proj
    number, device = number_of_experts(first), hidden_states.device
    tokens = hidden_states.shape[0] // number
    places = torch.arange(number * tokens, device=device).view(number, tokens).T
    routing = Routing(
        experts=torch.arange(number, device=device).repeat_interleave(tokens),
        tokens=torch.arange(tokens, device=device).repeat(number),
        order=torch.arange(number * tokens, device=device).view(tokens, number).T.flatten(),
        places=places.contiguous(),
        ends=torch.arange(1, number + 1, device=device, dtype=torch.int32) * tokens,
        has_rows=True,
    )
    gate, up = first(hidden_states, routing).chunk(2, dim=-1)
    return down(up * module.act_fn(gate), routing).view(-1, hidden_states.shape[-1])
