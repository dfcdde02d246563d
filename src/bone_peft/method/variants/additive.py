"""What variants have in common that add to the frozen layer's output without a look at its weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from ..ops.routing import Routing
from .variant import Below, BelowExperts, Dropout, Params, Variant


class Additive(Variant):
    """``y = W x + b + dW x``, where ``dW`` does not depend on ``W``."""

    cut_anywhere = True

    @classmethod
    @abstractmethod
    def addition(cls, x: Tensor, params: Params) -> Tensor:
        """``dW x (..., out)`` for ``x (..., in)``.

        With one more dimension in front, ``params`` hold a ``dW`` for each row of ``x (batch, tokens, in)``.
        """

    @classmethod
    def added_by_row(cls, y: Tensor, x: Tensor, params: Sequence[Params | None]) -> Tensor | None:
        """``y`` plus what each row's adapter adds, or ``None`` where there is nothing faster than ``addition``.

        Args:
            y: ``(batch, ..., out)``.
            x: ``(batch, ..., in)``.
            params: the tensors of each row's adapter, as they are kept; ``None`` where a row has none.
        """
        return None

    @classmethod
    def forward(cls, x: Tensor, params: Params, below: Below, dropout: Dropout | None) -> Tensor:
        return below.output(x) + cls.addition(dropout(x) if dropout else x, params)

    @classmethod
    @abstractmethod
    def addition_by_expert(cls, x: Tensor, params: Params, routing: Routing) -> Tensor:
        """``dW_e x (rows, out)`` for ``x (tokens, in)``."""

    @classmethod
    def forward_by_expert(
        cls, x: Tensor, params: Params, below: BelowExperts, dropout: Dropout | None, routing: Routing
    ) -> Tensor:
        added = cls.addition_by_expert(dropout(x) if dropout else x, params, routing)
        return below.output(x, routing) + added
