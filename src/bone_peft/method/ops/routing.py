"""Which token goes to which experts, and products that follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import grouped_bone
from .bat_weight import bat_weight_torch
from .grouped import grouped_bat, grouped_product
from .grouped_bat_input import grouped_bat_input
from .shared import with_block_sum
from .token_sums import rows_of_tokens, sums_of_rows


@dataclass(frozen=True)
class Routing:
    """The rows of a layer of experts: each token once for every expert that it goes to.

    Attributes:
        experts: ``(rows,)``, the expert of each row.
        tokens: ``(rows,)``, the token of each row.
        order: ``(rows,)``, which of the choices ``(tokens, k)``, counted through, each row is.
        places: ``(tokens, k)``, the row of each choice.
        ends: ``(number of experts,)`` in int32, where the rows of each expert end. ``None`` if rows lie in any order:
            each then takes a copy of its expert's matrices, which is less work if there are few.
        has_rows: whether tensors have rows already.
    """

    experts: Tensor
    tokens: Tensor
    order: Tensor
    places: Tensor
    ends: Tensor | None
    has_rows: bool = False

    def rows(self, x: Tensor) -> Tensor:
        """``(tokens, features)`` to ``(rows, features)``."""
        return x if self.has_rows else rows_of_tokens(x, self.tokens, self.places)

    def choices(self, weights: Tensor) -> Tensor:
        """``(tokens, k)`` to ``(rows,)``."""
        return rows_of_tokens(weights.reshape(-1, 1), self.order, self.places.view(-1, 1)).view(-1)

    def sums(self, y: Tensor) -> Tensor:
        """``(rows, features)`` to ``(tokens, features)``: the sum of each token's rows."""
        return sums_of_rows(y, self.tokens, self.places)

    @property
    def of_rows(self) -> Routing:
        """The same for tensors that have rows already."""
        return replace(self, has_rows=True)

    def products(self, x: Tensor, *matrices: Tensor) -> Tensor:
        """``x M_1 M_2 ...``, each ``M (experts, a, b)``, or ``(a, b)`` if all experts have one.

        Args:
            x: ``(tokens, a)``.
            matrices: all of one kind, of any dtype.

        Returns:
            ``(rows, b)`` in the dtype of ``x``.
        """
        if matrices[0].ndim == 2:
            for matrix in matrices:
                x = x @ matrix.to(x.dtype)
            return self.rows(x)
        x = self.rows(x)
        for matrix in _wide_enough(matrices) if x.is_cuda else matrices:
            x = self._product(x, matrix)
        return x

    def bone(self, x: Tensor, block: Tensor, output: Callable[[Tensor], Tensor]) -> Tensor | None:
        """``output(x) + s D_e (rows, out)`` with ``s = sum_i x_i``, in kernels; None where there are none.

        Args:
            x: ``(tokens, in)``.
            block: ``D (experts, r, out)``, of any dtype.
            output: from ``x`` to ``(rows, out)``.
        """
        r = block.shape[1]
        if self.ends is None or not grouped_bone.takes(x, r):
            return None
        x, s, handle = with_block_sum(x, r)
        y = output(x)
        tokens = torch.arange(len(y), device=y.device) if self.has_rows else self.tokens
        return grouped_bone.add_grouped_bone(y, s, handle, block, self.ends, tokens)

    def bat_input(self, x: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """``z = x + u (rows, in)`` and ``v = sum_i u_i (rows, r)`` with ``u_i = D_i x_i``.

        Args:
            x: ``(tokens, in)``.
            blocks: ``D (experts, in/r, r, r)``, of any dtype.
        """
        if self.ends is not None:
            of_tokens = (None, None) if self.has_rows else (self.tokens, self.places)
            return grouped_bat_input(x, blocks, self.ends, *of_tokens)
        x = self.rows(x)
        n, r = blocks.shape[1:3]
        u = torch.einsum("tid,tiad->tia", x.reshape(-1, n, r), blocks[self.experts].to(x.dtype))
        return x + u.reshape(x.shape), u.sum(1)

    def bat(self, x: Tensor, weight: Callable[[], Tensor], block: Tensor) -> Tensor:
        """``W' x``, with ``x (rows, in)``, a function for ``W (experts, out, in)``, ``B (experts, out/r, r, r)``."""
        if self.ends is not None:
            return grouped_bat(x, weight, block, self.ends)
        # The rows together are one weight with more block rows.
        own = weight()[self.experts]
        new = bat_weight_torch(own.flatten(0, 1), block[self.experts].flatten(0, 1)).view(own.shape)
        return torch.bmm(new, x[:, :, None])[:, :, 0]

    def _product(self, x: Tensor, matrix: Tensor) -> Tensor:
        if self.ends is not None:
            return grouped_product(x, matrix, self.ends)
        return torch.bmm(x[:, None], matrix[self.experts].to(x.dtype))[:, 0]


def _wide_enough(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The same product, with zeros where grouped products on a GPU want rows of 16 bytes between two matrices."""
    gaps = [0, *(-matrix.shape[2] % 8 for matrix in matrices[:-1]), 0]
    return [
        pad(matrix, (0, after, 0, before)) if before or after else matrix
        for matrix, (before, after) in zip(matrices, pairwise(gaps), strict=True)
    ]


def route(experts: Tensor, number: int, in_order: bool) -> Routing:
    """The routing of a layer.

    Args:
        experts: ``(tokens, k)``, the experts that each token goes to.
        number: of experts.
        in_order: whether rows are to lie in the order of their experts.
    """
    k, flat = experts.shape[1], experts.reshape(-1)
    here = torch.arange(len(flat), device=flat.device)
    if not in_order:
        return Routing(flat, here // k, here, here.view(experts.shape), None)
    ordered, order = torch.sort(flat, stable=True)
    ends = torch.searchsorted(ordered, torch.arange(number, device=flat.device), right=True).int()
    places = torch.empty_like(order)
    places[order] = here
    return Routing(ordered, order // k, order, places.view(experts.shape), ends)
