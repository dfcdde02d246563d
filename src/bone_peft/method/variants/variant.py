"""What every variant of Bone has to say about itself.

A variant is one way of writing the change ``dW`` of a frozen weight ``W (out, in)``. It is a class of pure functions:
tensors in, tensors out. It knows nothing of modules, PEFT or files. To add a variant, add one file to this folder with
one subclass of :class:`Variant`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..ops.routing import Routing

Params = Mapping[str, Tensor]
"""The trainable tensors of one adapter in one layer, by name."""

Dropout = Callable[[Tensor], Tensor]


class Below(Protocol):
    """What an adapter stands on: the frozen layer, with the adapters applied before it.

    Attributes:
        bias: ``(out,)`` or ``None``.
        frozen: whether nothing in it is trained, so that its weight needs no gradient.
    """

    @property
    def bias(self) -> Tensor | None: ...

    @property
    def frozen(self) -> bool: ...

    def output(self, x: Tensor) -> Tensor:
        """``x (..., in)`` to ``W x + bias (..., out)``."""
        ...

    def weight(self, dtype: torch.dtype) -> Tensor:
        """``W (out, in)`` in ``dtype``. May cost a dequantization: ask only if there is no other way."""
        ...

    def linear(self, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """``W`` and ``bias``, if ``output`` is no more than ``F.linear`` with them in the dtype of ``x``."""
        ...


class BelowExperts(Protocol):
    """The same for a layer of experts, each with a weight of its own.

    Attributes:
        experts: how many.
        frozen: whether nothing in it is trained.
    """

    @property
    def experts(self) -> int: ...

    @property
    def frozen(self) -> bool: ...

    def output(self, x: Tensor, routing: Routing) -> Tensor:
        """``x (tokens, in)`` to ``W_e x + bias_e (rows, out)``."""
        ...

    def weight(self, dtype: torch.dtype) -> Tensor:
        """``W (experts, out, in)`` in ``dtype``."""
        ...

    def biases(self, routing: Routing) -> Tensor | None:
        """``(rows, out)``, the bias of each row's expert, if they have one."""
        ...

    def part(self, part: int, parts: int) -> BelowExperts:
        """One of ``parts`` as many outputs, side by side."""
        ...


class Variant(ABC):
    """One way of writing ``dW``.

    Class attributes:
        name: the word used in tables and messages.
        parameters: names of the trainable tensors. Each starts with ``bone_``, PEFT's prefix for this method.
        options: the fields of ``BoneConfig`` that belong to this variant, with their defaults.
        size_field: the option that sets the size of the tensors, and that ``rank_pattern`` overrides by module.
        dropout_field: the option that holds the dropout probability.
        reads_weight: whether :meth:`forward` needs the weight itself.
        sums_blocks: whether :meth:`fast_forward` sums the blocks of ``x``, which layers that read one ``x`` can share.
        cut_anywhere: whether :meth:`rows` and :meth:`columns` take any ends, and not multiples of ``r`` alone.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]] = ("bone_block",)
    options: ClassVar[dict[str, Any]] = {"r": 64, "bone_dropout": 0.0}
    size_field: ClassVar[str] = "r"
    dropout_field: ClassVar[str] = "bone_dropout"
    reads_weight: ClassVar[bool] = False
    sums_blocks: ClassVar[bool] = False
    cut_anywhere: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def selected_by(cls, config: Any) -> bool:
        """Whether the fields of ``config`` ask for this variant. Exactly one variant answers yes."""

    @classmethod
    def size(cls, config: Any, base_size: int) -> int:
        """The ``r`` of a layer, given the value of ``size_field`` that holds for it."""
        return base_size

    @classmethod
    def refusal(cls, in_features: int, out_features: int, r: int) -> str | None:
        """Why a layer of this shape cannot be adapted with block size ``r``, or ``None`` if it can."""
        return None

    @classmethod
    @abstractmethod
    def shapes(cls, in_features: int, out_features: int, r: int) -> dict[str, tuple[int, ...]]:
        """Shape of each trainable tensor."""

    @classmethod
    @abstractmethod
    def sides(cls, params: Params) -> tuple[int, int, int]:
        """``(in, out, r)`` as far as ``params`` tell; a side that they do not depend on is given as ``r``."""

    @classmethod
    @abstractmethod
    def rows(cls, params: Params, start: int, stop: int) -> Params:
        """Parameters whose ``dW`` is ``dW[start:stop]``. Both ends are multiples of ``r``, or the end of ``dW``.

        ``params`` may have more dimensions in front.
        """

    @classmethod
    @abstractmethod
    def columns(cls, params: Params, start: int, stop: int) -> Params:
        """Parameters that give ``dW[:, start:stop]`` for ``weight[:, start:stop]``. For the ends see :meth:`rows`."""

    @classmethod
    @abstractmethod
    def beside(cls, parts: Sequence[Params]) -> Params | None:
        """The way back: parameters whose ``dW`` are those of ``parts``, one below the other, or ``None``."""

    @classmethod
    @abstractmethod
    def initialize(cls, params: Params, init_weights: bool | str) -> None:
        """Fill ``params`` in place. ``False`` asks for random values; all else starts at ``dW = 0``."""

    @classmethod
    def scaled(cls, params: Params, scale: float) -> Params:
        """Parameters whose ``dW`` is ``scale`` times that of ``params``."""
        return {name: tensor * scale for name, tensor in params.items()}

    @classmethod
    def combined(cls, adapters: Sequence[Params], weights: Sequence[float]) -> Params:
        """Parameters whose ``dW`` is ``sum_k weights[k] * dW_k``, exactly."""
        return {
            name: torch.stack([w * p[name] for p, w in zip(adapters, weights, strict=True)]).sum(0)
            for name in cls.parameters
        }

    @classmethod
    def combined_size(cls, sizes: Sequence[int]) -> int:
        """The ``r`` of the adapter that :meth:`combined` returns, for adapters of these sizes."""
        return sizes[0]

    @classmethod
    @abstractmethod
    def delta_weight(cls, params: Params, weight: Tensor) -> Tensor:
        """``dW (out, in)`` for ``weight (out, in)``, in the dtype of ``weight``; ``params`` have that dtype too."""

    @classmethod
    def add_delta_weight(cls, params: Params, weight: Tensor) -> None:
        """Add :meth:`delta_weight` to ``weight`` in place."""
        weight += cls.delta_weight(params, weight)

    @classmethod
    @abstractmethod
    def forward(cls, x: Tensor, params: Params, below: Below, dropout: Dropout | None) -> Tensor:
        """The adapted layer's output, ``W x + bias + dW dropout(x)``.

        Args:
            x: ``(..., in)``.
            params: the trainable tensors, in the dtype to compute in.
            below: the frozen layer.
            dropout: ``None`` if there is nothing to drop.

        Returns:
            ``(..., out)``.
        """

    @classmethod
    def fast_forward(cls, x: Tensor, params: Params, below: Below, dropout: Dropout | None) -> Tensor | None:
        """:meth:`forward` by way of ``bone_peft.method.ops``, or ``None`` where that has nothing faster.

        ``params`` are in the dtype that they are kept in.
        """
        return None

    @classmethod
    @abstractmethod
    def forward_by_expert(
        cls, x: Tensor, params: Params, below: BelowExperts, dropout: Dropout | None, routing: Routing
    ) -> Tensor:
        """The output of an adapted layer of experts.

        Args:
            x: ``(tokens, in)``.
            params: the trainable tensors, in the dtype that they are kept in; with one more dimension in front, of the
                experts, unless all experts have one adapter.
            below: the frozen layer.
            dropout: ``None`` if there is nothing to drop.
            routing: which tokens go to which experts.

        Returns:
            ``(rows, out)``.
        """

    @classmethod
    def lora_factors(cls, params: Params, in_features: int) -> tuple[Tensor, Tensor] | None:
        """``(A (r, in), B (out, r))`` with ``B A = dW``, or ``None`` where ``dW`` is not of low rank."""
        return None
