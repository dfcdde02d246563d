"""Bat: each block row of the weight is transformed by a block of its own (arXiv 2409.15371, 'weight guide')."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.bat_layer import bat_layer
from ..ops.routing import Routing
from .variant import Below, BelowExperts, Dropout, Params, Variant


class BatBase(Variant):
    """What the two forms of Bat have in common."""

    @classmethod
    def refusal(cls, in_features: int, out_features: int, r: int) -> str | None:
        if in_features % r == 0 and out_features % r == 0:
            return None
        return (
            f"Bat needs r to divide both sides of the weight, and r={r} does not divide {out_features} x {in_features}"
        )

    @classmethod
    def initialize(cls, params: Params, init_weights: bool | str) -> None:
        nn.init.zeros_(params["bone_block"])


class Bat(BatBase):
    """``W'_oi = W_oi + W_oi B_o + B_o`` with ``B (out/r, r, r)``: block row ``o``, block column ``i``.

    ``W`` viewed as ``(out/r, r * in/r, r)`` times ``B`` is one batched product; nothing is permuted.
    """

    name = "bat"
    reads_weight = True
    options = {**Variant.options, "share": "output"}

    @classmethod
    def selected_by(cls, config: Any) -> bool:
        return config.init_weights == "bat" and config.share in (None, "output")

    @classmethod
    def shapes(cls, in_features: int, out_features: int, r: int) -> dict[str, tuple[int, ...]]:
        return {"bone_block": (out_features // r, r, r)}

    @classmethod
    def sides(cls, params: Params) -> tuple[int, int, int]:
        rows, r, _ = params["bone_block"].shape
        return r, rows * r, r

    @classmethod
    def rows(cls, params: Params, start: int, stop: int) -> Params:
        r = params["bone_block"].shape[-1]
        return {"bone_block": params["bone_block"][..., start // r : stop // r, :, :]}

    @classmethod
    def columns(cls, params: Params, start: int, stop: int) -> Params:
        return params

    @classmethod
    def beside(cls, parts: Sequence[Params]) -> Params:
        return {"bone_block": torch.cat([params["bone_block"] for params in parts], dim=-3)}

    @classmethod
    def delta_weight(cls, params: Params, weight: Tensor) -> Tensor:
        block = params["bone_block"]
        rows, r, _ = block.shape
        product = torch.bmm(weight.reshape(rows, -1, r), block)
        return (product.view(rows, r, -1, r) + block[:, :, None, :]).view(weight.shape)

    @classmethod
    def forward(cls, x: Tensor, params: Params, below: Below, dropout: Dropout | None) -> Tensor:
        weight = below.weight(params["bone_block"].dtype)
        delta = cls.delta_weight(params, weight)
        if dropout:
            return below.output(x) + F.linear(dropout(x), delta)
        return F.linear(x, weight + delta, below.bias)

    @classmethod
    def fast_forward(cls, x: Tensor, params: Params, below: Below, dropout: Dropout | None) -> Tensor | None:
        return None if dropout else bat_layer(x, params["bone_block"], below)

    @classmethod
    def forward_by_expert(
        cls, x: Tensor, params: Params, below: BelowExperts, dropout: Dropout | None, routing: Routing
    ) -> Tensor:
        block = params["bone_block"]
        if block.ndim == 3:
            block = block.expand(below.experts, *block.shape)
        if below.frozen and not dropout:
            y = routing.of_rows.bat(routing.rows(x), lambda: below.weight(x.dtype), block)
        else:
            weight = below.weight(x.dtype)
            # All experts together are one weight with more block rows.
            flat = {"bone_block": block.to(x.dtype).flatten(0, 1)}
            delta = cls.delta_weight(flat, weight.flatten(0, 1)).view(weight.shape)
            if dropout:
                return below.output(x, routing) + routing.products(dropout(x), delta.mT)
            y = routing.products(x, (weight + delta).mT)
        biases = below.biases(routing)
        return y if biases is None else y + biases
