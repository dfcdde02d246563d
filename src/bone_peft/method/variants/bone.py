"""Bone: one block, added to every block of the weight (arXiv 2409.15371, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import mixed_bone
from ..ops.bone_layer import bone_layer
from ..ops.routing import Routing
from .additive import Additive
from .variant import Below, BelowExperts, Dropout, Params


def block_sum(x: Tensor, r: int) -> Tensor:
    """``s = sum_i x_i``: the sum of the blocks of the last dimension.

    Args:
        x: ``(..., in)``, any strides. The last block is taken as zero-padded when ``r`` does not divide ``in``.
        r: block size, at least 1.

    Returns:
        ``(..., r)``, in the dtype of ``x``. Nothing of ``x`` is kept for backward.
    """
    features = x.shape[-1]
    whole = features - features % r
    s = x[..., :whole].reshape(*x.shape[:-1], whole // r, r).sum(-2)
    if whole < features:
        s = s + F.pad(x[..., whole:], (0, r - (features - whole)))
    return s


class Bone(Additive):
    """``y = W x + b + (sum_i x_i) D`` with ``D (r, out)``, that is ``dW = [D^T D^T ...][:, :in]``.

    Any ``in`` is allowed; the last block may be ragged.
    """

    name = "bone"
    sums_blocks = True

    @classmethod
    def selected_by(cls, config: Any) -> bool:
        return isinstance(config.init_weights, bool) and config.bottleneck_size is None

    @classmethod
    def shapes(cls, in_features: int, out_features: int, r: int) -> dict[str, tuple[int, ...]]:
        return {"bone_block": (r, out_features)}

    @classmethod
    def sides(cls, params: Params) -> tuple[int, int, int]:
        r, out_features = params["bone_block"].shape
        return r, out_features, r

    @classmethod
    def rows(cls, params: Params, start: int, stop: int) -> Params:
        return {"bone_block": params["bone_block"][..., start:stop]}

    @classmethod
    def columns(cls, params: Params, start: int, stop: int) -> Params:
        # Column c of dW is row c % r of D.
        block = params["bone_block"]
        shift = start % block.shape[-2]
        return {"bone_block": block.roll(-shift, -2) if shift else block}

    @classmethod
    def beside(cls, parts: Sequence[Params]) -> Params:
        return {"bone_block": torch.cat([params["bone_block"] for params in parts], dim=-1)}

    @classmethod
    def initialize(cls, params: Params, init_weights: bool | str) -> None:
        if init_weights:
            nn.init.zeros_(params["bone_block"])
        else:
            nn.init.kaiming_uniform_(params["bone_block"], a=math.sqrt(5))

    @classmethod
    def delta_weight(cls, params: Params, weight: Tensor) -> Tensor:
        block = params["bone_block"]
        in_features = weight.shape[1]
        blocks = math.ceil(in_features / block.shape[0])
        # Row-major first: read down its columns, a slice of a wide block takes ten times as long.
        return block.T.contiguous().repeat(1, blocks)[:, :in_features]

    @classmethod
    def add_delta_weight(cls, params: Params, weight: Tensor) -> None:
        block = params["bone_block"]
        r = block.shape[0]
        if weight.shape[1] % r or not weight.is_contiguous():
            super().add_delta_weight(params, weight)
        else:  # Without a dW of the weight's size.
            weight.view(len(weight), -1, r).add_(block.T.contiguous()[:, None, :])

    @classmethod
    def addition(cls, x: Tensor, params: Params) -> Tensor:
        block = params["bone_block"]
        return block_sum(x, block.shape[-2]) @ block

    @classmethod
    def added_by_row(cls, y: Tensor, x: Tensor, params: Sequence[Params | None]) -> Tensor | None:
        blocks = [None if own is None else own["bone_block"] for own in params]
        if not mixed_bone.takes(y, x, [block for block in blocks if block is not None]):
            return None
        return mixed_bone.add_mixed_bone(y, x, blocks)

    @classmethod
    def addition_by_expert(cls, x: Tensor, params: Params, routing: Routing) -> Tensor:
        # The sum of a token is the same for all experts that it goes to.
        block = params["bone_block"]
        return routing.products(block_sum(x, block.shape[-2]), block)

    @classmethod
    def forward_by_expert(
        cls, x: Tensor, params: Params, below: BelowExperts, dropout: Dropout | None, routing: Routing
    ) -> Tensor:
        block = params["bone_block"]
        y = routing.bone(x, block, lambda x: below.output(x, routing)) if block.ndim == 3 and not dropout else None
        return super().forward_by_expert(x, params, below, dropout, routing) if y is None else y

    @classmethod
    def fast_forward(cls, x: Tensor, params: Params, below: Below, dropout: Dropout | None) -> Tensor:
        return bone_layer(x, params["bone_block"], below, dropout)

    @classmethod
    def lora_factors(cls, params: Params, in_features: int) -> tuple[Tensor, Tensor]:
        block = params["bone_block"]
        r = block.shape[0]
        column = torch.arange(in_features, device=block.device) % r
        row = torch.arange(r, device=block.device)
        return (row[:, None] == column[None, :]).to(block.dtype), block.T
