"""Bottleneck: a narrow pair of linear maps beside the frozen layer (the 'Bottleneck Network' guide)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.routing import Routing
from .additive import Additive
from .variant import Params


class Bottleneck(Additive):
    """``y = W x + b + up(down(dropout(x)))`` with ``bone_down (w, in)`` and ``bone_up (out, w)``.

    ``w = round(bottleneck_size * bottleneck_alpha)``. There is no activation in between, so ``dW = up down`` merges.
    """

    name = "bottleneck"
    parameters = ("bone_down", "bone_up")
    options = {"bottleneck_size": None, "bottleneck_alpha": 1.0, "bottleneck_dropout": 0.0}
    size_field = "bottleneck_size"
    dropout_field = "bottleneck_dropout"

    @classmethod
    def selected_by(cls, config: Any) -> bool:
        return config.bottleneck_size is not None

    @classmethod
    def size(cls, config: Any, base_size: int) -> int:
        return round(base_size * config.bottleneck_alpha)

    @classmethod
    def refusal(cls, in_features: int, out_features: int, r: int) -> str | None:
        if r >= 1:
            return None
        return "the bottleneck is round(bottleneck_size * bottleneck_alpha) wide, and that has to be at least 1"

    @classmethod
    def shapes(cls, in_features: int, out_features: int, r: int) -> dict[str, tuple[int, ...]]:
        return {"bone_down": (r, in_features), "bone_up": (out_features, r)}

    @classmethod
    def sides(cls, params: Params) -> tuple[int, int, int]:
        r, in_features = params["bone_down"].shape
        return in_features, params["bone_up"].shape[0], r

    @classmethod
    def rows(cls, params: Params, start: int, stop: int) -> Params:
        return {"bone_down": params["bone_down"], "bone_up": params["bone_up"][..., start:stop, :]}

    @classmethod
    def columns(cls, params: Params, start: int, stop: int) -> Params:
        return {"bone_down": params["bone_down"][..., start:stop], "bone_up": params["bone_up"]}

    @classmethod
    def beside(cls, parts: Sequence[Params]) -> Params | None:
        down = parts[0]["bone_down"]
        if not all(torch.equal(down, params["bone_down"]) for params in parts):
            return None
        return {"bone_down": down, "bone_up": torch.cat([params["bone_up"] for params in parts], dim=-2)}

    @classmethod
    def initialize(cls, params: Params, init_weights: bool | str) -> None:
        nn.init.kaiming_uniform_(params["bone_down"], a=math.sqrt(5))
        if init_weights:
            nn.init.zeros_(params["bone_up"])
        else:
            nn.init.kaiming_uniform_(params["bone_up"], a=math.sqrt(5))

    @classmethod
    def scaled(cls, params: Params, scale: float) -> Params:
        return {"bone_down": params["bone_down"], "bone_up": params["bone_up"] * scale}

    @classmethod
    def combined(cls, adapters: Sequence[Params], weights: Sequence[float]) -> Params:
        """``dW`` is a product, so parameters do not add: the bottlenecks are laid side by side instead."""
        scaled = [cls.scaled(params, weight) for params, weight in zip(adapters, weights, strict=True)]
        return {
            "bone_down": torch.cat([params["bone_down"] for params in scaled], dim=0),
            "bone_up": torch.cat([params["bone_up"] for params in scaled], dim=1),
        }

    @classmethod
    def combined_size(cls, sizes: Sequence[int]) -> int:
        return sum(sizes)

    @classmethod
    def delta_weight(cls, params: Params, weight: Tensor) -> Tensor:
        return params["bone_up"] @ params["bone_down"]

    @classmethod
    def addition(cls, x: Tensor, params: Params) -> Tensor:
        return x @ params["bone_down"].mT @ params["bone_up"].mT

    @classmethod
    def addition_by_expert(cls, x: Tensor, params: Params, routing: Routing) -> Tensor:
        return routing.products(x, params["bone_down"].mT, params["bone_up"].mT)

    @classmethod
    def lora_factors(cls, params: Params, in_features: int) -> tuple[Tensor, Tensor]:
        return params["bone_down"], params["bone_up"]
