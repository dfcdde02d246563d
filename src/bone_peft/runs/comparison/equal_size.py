"""The rank at which one method trains about as many parameters as another."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from .compared import Method, Targets


def parameters(base: Any, config: Any) -> int:
    """How many numbers a method trains on ``base``, which keeps as it is; nothing is computed or filled."""
    config.task_type = "CAUSAL_LM"
    if isinstance(config, LoraConfig):
        config.init_lora_weights = True  # what is made from the weights counts alike
    with torch.device("meta"):
        model: Any = get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def nearest_size(base: Any, method: Method, targets: Targets, count: int) -> int:
    """The size of ``method`` whose parameters are nearest to ``count``.

    Args:
        base: on the meta device.
    """
    assert method.config is not None
    counted: dict[int, int] = {}

    def at(size: int) -> int:
        if size not in counted:
            counted[size] = parameters(base, method.config(size, targets))  # type: ignore[misc]
        return counted[size]

    low, high = 0, len(method.sizes) - 1
    while low < high:  # counts grow with the size
        middle = (low + high) // 2
        if at(method.sizes[middle]) < count:
            low = middle + 1
        else:
            high = middle
    around: Sequence[int] = method.sizes[max(0, low - 1) : low + 1]
    return min(around, key=lambda size: abs(at(size) - count))
