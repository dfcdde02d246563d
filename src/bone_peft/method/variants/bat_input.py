"""Bat shared over the input: each block column of the weight has a block of its own (the layout of RWKV-PEFT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.bat_input_layer import add_tiled, bat_input, bat_input_layer
from ..ops.routing import Routing
from .bat import BatBase
from .variant import Below, BelowExperts, Dropout, Params, Variant


def block_product(x: Tensor, block: Tensor) -> Tensor:
    """``u_i = D_i x_i`` for every block ``i``.

    Args:
        x: ``(..., in)``.
        block: ``D (in/r, r, r)``.

    Returns:
        ``u (..., in)``.
    """
    n, r, _ = block.shape
    return torch.einsum("...id,iad->...ia", x.reshape(*x.shape[:-1], n, r), block).reshape(x.shape)


class BatInput(BatBase):
    """``W'_oi = W_oi + W_oi D_i + D_i`` with ``D (in/r, r, r)``.

    Never needs the weight: with ``u_i = D_i x_i``, ``y = W (x + u) + b + tile(sum_i u_i, out/r)``.
    """

    name = "bat-input"
    options = {**Variant.options, "share": "input"}

    @classmethod
    def selected_by(cls, config: Any) -> bool:
        return config.init_weights == "bat" and config.share == "input"

    @classmethod
    def shapes(cls, in_features: int, out_features: int, r: int) -> dict[str, tuple[int, ...]]:
        return {"bone_block": (in_features // r, r, r)}

    @classmethod
    def sides(cls, params: Params) -> tuple[int, int, int]:
        n, r, _ = params["bone_block"].shape
        return n * r, r, r

    @classmethod
    def rows(cls, params: Params, start: int, stop: int) -> Params:
        return params

    @classmethod
    def columns(cls, params: Params, start: int, stop: int) -> Params:
        r = params["bone_block"].shape[-1]
        return {"bone_block": params["bone_block"][..., start // r : stop // r, :, :]}

    @classmethod
    def beside(cls, parts: Sequence[Params]) -> Params | None:
        # Each has one block a column of its own weight, and together they have one.
        first = parts[0]
        return first if all(torch.equal(first["bone_block"], params["bone_block"]) for params in parts) else None

    @classmethod
    def delta_weight(cls, params: Params, weight: Tensor) -> Tensor:
        block = params["bone_block"]
        n, r, _ = block.shape
        rows = weight.shape[0] // r
        product = torch.einsum("oic,icd->oid", weight.reshape(-1, n, r), block)
        return (product.view(rows, r, n, r) + block.transpose(0, 1)).reshape(weight.shape)

    @classmethod
    def forward(cls, x: Tensor, params: Params, below: Below, dropout: Dropout | None) -> Tensor:
        block = params["bone_block"]
        n, r, _ = block.shape
        u = block_product(dropout(x) if dropout else x, block)
        y = below.output(x + u)
        v = u.reshape(*u.shape[:-1], n, r).sum(-2).to(y.dtype)
        rows = y.shape[-1] // r
        return (y.reshape(*y.shape[:-1], rows, r) + v[..., None, :]).reshape(y.shape)

    @classmethod
    def fast_forward(cls, x: Tensor, params: Params, below: Below, dropout: Dropout | None) -> Tensor | None:
        return None if dropout else bat_input_layer(x, params["bone_block"], below)

    @classmethod
    def forward_by_expert(
        cls, x: Tensor, params: Params, below: BelowExperts, dropout: Dropout | None, routing: Routing
    ) -> Tensor:
        block = params["bone_block"]
        dropped = dropout(x) if dropout else x
        if block.ndim == 4:
            z, v = routing.bat_input(dropped, block)
            if dropout:
                z = routing.rows(x) + (z - routing.rows(dropped))
            return add_tiled(below.output(z, routing.of_rows), v)
        z, v = bat_input(dropped, block)
        if dropout:
            z = x + (z - dropped)
        return add_tiled(below.output(z, routing), routing.rows(v))
