"""The methods that are compared, as functions of the layers' shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from peft import LoraConfig

from bone_peft.method import BoneConfig
from bone_peft.method.variants import VARIANTS


class Shape(NamedTuple):
    """Of a layer's weight, or of the weights of all its experts, each of which has an adapter.

    Attributes:
        parts: projections that lie side by side along ``out``.
    """

    out: int
    into: int
    experts: int = 1
    parts: int = 1


Layers = Mapping[str, Shape]
"""By module."""


@dataclass(frozen=True)
class Method:
    """One method at any size.

    Attributes:
        name: for tables.
        parameters: trainable parameters of a layer, from ``(out, in, size)``.
        refusal: why a layer cannot be adapted at that size, or ``None``.
        config: a PEFT config for a size and target modules.
    """

    name: str
    parameters: Callable[[int, int, int], int]
    refusal: Callable[[int, int, int], str | None]
    config: Callable[[int, list[str]], Any]

    def count(self, layers: Layers, size: int) -> int:
        """Trainable parameters of all layers."""
        return sum(shape.experts * self.parameters(shape.out, shape.into, size) for shape in layers.values())

    def why_not(self, layers: Layers, size: int) -> str | None:
        """Why some layer cannot be adapted at this size, or ``None`` if all can."""
        refusals = (self.refusal(shape.out // shape.parts, shape.into, size) for shape in layers.values())
        return next(filter(None, refusals), None)


def _bone(name: str, variant_name: str, **options: Any) -> Method:
    variant = VARIANTS[variant_name]
    return Method(
        name,
        lambda out, in_, size: sum(map(prod, variant.shapes(in_, out, size).values())),
        lambda out, in_, size: variant.refusal(in_, out, size),
        lambda size, targets: BoneConfig(target_modules=targets, **options | {variant.size_field: size}),
    )


METHODS = {
    method.name: method
    for method in (
        _bone("Bone", "bone"),
        _bone("Bat", "bat", init_weights="bat"),
        _bone("Bat, input-shared", "bat-input", init_weights="bat", share="input"),
        _bone("Bottleneck", "bottleneck"),
        Method(
            "LoRA",
            lambda out, in_, size: size * (out + in_),
            lambda out, in_, size: None,
            lambda size, targets: LoraConfig(r=size, target_modules=targets),
        ),
    )
}
"""By name, in the order of the tables."""
