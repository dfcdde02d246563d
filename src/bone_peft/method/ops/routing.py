"""Which token goes to which experts, and products that follow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .bat_weight import bat_weight_torch
from .grouped import grouped_bat, grouped_block_product, grouped_product


@dataclass(frozen=True)
class Routing:
    """The rows of a layer of experts: each token once for every expert that it goes to.

    Attributes:
        experts: ``(rows,)``, the expert of each row.
        tokens: ``(rows,)``, the token of each row.
        number: of tokens.
        has_rows: whether tensors have rows already.
        ends: ``(number of experts,)`` in int32, where the rows of each expert end. ``None`` if rows lie in any order:
            each then takes a copy of its expert's matrices, which is less work if there are few.
    """

    experts: Tensor
    tokens: Tensor
    number: int
    ends: Tensor | None
    has_rows: bool = False

    def rows(self, x: Tensor) -> Tensor:
        """``(tokens, features)`` to ``(rows, features)``."""
        return x if self.has_rows else x[self.tokens]

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
        for matrix in matrices:
            x = self._product(x, matrix)
        return x

    def block_product(self, x: Tensor, blocks: Tensor) -> Tensor:
        """``D_i x_i`` for each block ``i``, with ``x (rows, in)`` and ``D (experts, in/r, r, r)``."""
        if self.ends is not None:
            return grouped_block_product(x, blocks, self.ends)
        n, r = blocks.shape[1:3]
        own = blocks[self.experts].to(x.dtype)
        return torch.einsum("tid,tiad->tia", x.reshape(-1, n, r), own).reshape(x.shape)

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


def route(experts: Tensor, number: int, in_order: bool) -> tuple[Routing, Tensor | None]:
    """The routing of a layer.

    Args:
        experts: ``(tokens, k)``, the experts that each token goes to.
        number: of experts.
        in_order: whether rows are to lie in the order of their experts.

    Returns:
        The routing, and the place in ``(tokens, k)`` of each row; ``None`` if that is the order they are in.
    """
    (number_of_tokens, k), flat = experts.shape, experts.reshape(-1)
    if not in_order:
        return Routing(flat, torch.arange(len(flat), device=flat.device) // k, number_of_tokens, None), None
    ordered, places = torch.sort(flat, stable=True)
    ends = torch.searchsorted(ordered, torch.arange(number, device=flat.device), right=True).int()
    return Routing(ordered, places // k, number_of_tokens, ends), places
