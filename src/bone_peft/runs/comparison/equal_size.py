"""The rank at which one method trains about as many parameters as another."""

from __future__ import annotations

import copy
from bisect import bisect_left
from functools import cache
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from .compared import Method, Targets


def parameters(base: Any, config: Any) -> int:
    """How many numbers a method trains on ``base``, which keeps as it is; nothing is computed or filled.

    Args:
        base: on the meta device.
    """
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

    @cache
    def at(size: int) -> int:
        return parameters(base, method.config(size, targets))

    place = bisect_left(method.sizes, count, key=at)  # counts grow with the size
    return min(method.sizes[max(0, place - 1) : place + 1], key=lambda size: abs(at(size) - count))
