"""What the operations ask of the layer that they adapt. ``bone_peft.method.variants.Below`` answers."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class BaseLayer(Protocol):
    """A frozen layer, as a black box that may be plain after all.

    Attributes:
        bias: ``(out,)`` or ``None``.
        frozen: whether nothing in it is trained.
    """

    @property
    def bias(self) -> Tensor | None: ...

    @property
    def frozen(self) -> bool: ...

    def output(self, x: Tensor) -> Tensor:
        """``x (..., in)`` to ``(..., out)``."""
        ...

    def weight(self, dtype: torch.dtype) -> Tensor:
        """``(out, in)`` in ``dtype``."""
        ...

    def linear(self, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias, if ``output(x)`` is ``F.linear`` with them, all in the dtype of ``x``; else ``None``."""
        ...
