"""``Adapter``: what all formats are read into and written from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.io.names import shown
from bone_peft.method import BoneConfig
from bone_peft.method.tuner.experts import separate
from bone_peft.method.tuner.experts.fused import FusedLinear
from bone_peft.method.variants import Params, Variant, experts_of, of_expert

ShapeOf = Callable[[str], tuple[int, ...]]
"""``(out, in)`` of the weight of a module, by name, or ``(experts, out, in)``. Raises BoneError if there is none."""


class Base(Protocol):
    """What is asked of a base that an adapter is to fit."""

    def shape_of(self, module: str) -> tuple[int, ...]: ...

    def fused(self, module: str) -> FusedLinear | None: ...


FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Adapter:
    """One adapter.

    Attributes:
        config: its options; the variant follows from them.
        layers: the tensors of each adapted module, by module name (``model.layers.0.self_attn.q_proj``).
        whole: parameters that were trained whole (``modules_to_save``, biases), by parameter name.
        mini_r: MiSS 'mini' stores this many columns of ``D``, which repeat along ``out``; else ``None``.
    """

    config: BoneConfig
    layers: dict[str, Params]
    whole: dict[str, Tensor] = field(default_factory=dict)
    mini_r: int | None = None

    @property
    def variant(self) -> type[Variant]:
        return self.config.variant

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, by a name of its own."""
        named = {f"{module}.{name}": t for module, params in self.layers.items() for name, t in params.items()}
        return named | self.whole

    def r(self, module: str) -> int:
        """Block size of a module, or the width of its bottleneck."""
        return self.variant.sides(of_expert(self.variant, self.layers[module], 0))[2]

    def rounded(self, dtype: str) -> Adapter:
        """With every tensor in ``dtype``, such as ``"bfloat16"``.

        Raises:
            BoneError: no such type, or a value is beyond what it holds.
        """
        kinds = {str(kind).removeprefix("torch."): kind for kind in FLOATS}
        if dtype not in kinds:
            raise BoneError(f"dtype {dtype!r} is unknown; choose one of {', '.join(kinds)}.")
        layers: dict[str, Params] = {
            module: {name: tensor.to(kinds[dtype]) for name, tensor in params.items()}
            for module, params in self.layers.items()
        }
        rounded = replace(self, layers=layers, whole={name: t.to(kinds[dtype]) for name, t in self.whole.items()})
        for name, tensor in rounded.tensors().items():
            if not torch.isfinite(tensor).all():
                raise BoneError(f"{shown(name)} is beyond what {dtype} holds: choose bfloat16 or float32.")
        return rounded

    def joined(self, model: Any) -> Adapter:
        """With adapters of separate experts as those of the fused parameters that ``model``, an outline, has."""
        return replace(self, layers=separate.joined(model, self.variant, self.layers))

    def is_untrained(self) -> bool:
        """Whether every ``dW`` is zero, as before the first step."""
        return all(any(not tensor.any() for tensor in params.values()) for params in self.layers.values())

    def checked(self, where: str) -> Adapter:
        """Itself, if its tensors are what its config says.

        Raises:
            BoneError: no tensors, one missing or not floating, or a shape that the variant cannot have.
        """
        if not self.layers:
            raise BoneError(f"{where} holds no tensors of an adapter: was it saved by another method?")
        for module, params in self.layers.items():
            missing = [name for name in self.variant.parameters if name not in params]
            if missing or len(params) != len(self.variant.parameters):
                raise BoneError(
                    f"{where} has {', '.join(sorted(params))} for {shown(module)}, and "
                    f"{self.variant.name} has {', '.join(self.variant.parameters)}: the file is incomplete, or "
                    "its config is of another one."
                )
            problem = _shape_problem(self.variant, module, params)
            if problem:
                raise BoneError(f"{where}: {shown(module)} {problem}; the file and its config do not fit.")
        for name, tensor in self.tensors().items():
            if tensor.dtype not in FLOATS:
                raise BoneError(f"{where} holds {shown(name)} as {tensor.dtype}, and adapters are floating point.")
        return self

    def check_finite(self, where: str) -> None:
        """Raise a BoneError if there is NaN or infinity in any tensor."""
        for name, tensor in self.tensors().items():
            if not torch.isfinite(tensor).all():
                raise BoneError(
                    f"{where} holds NaN or infinity in {shown(name)}: its training went wrong, take an earlier one."
                )

    def check_fits(self, base: Base, where: str) -> None:
        """Raise a BoneError if a module is missing in the base, or has another shape there."""
        for module, params in self.layers.items():
            *experts, out_features, in_features = base.shape_of(module)
            found = {name: tuple(tensor.shape) for name, tensor in params.items()}
            allowed = []
            for parts in {1, *([len(fused.parts)] if (fused := base.fused(module)) is not None else [])}:
                each = [number * parts for number in experts] if self.config.experts == "each" else []
                shapes = self.variant.shapes(in_features, out_features // parts, self.r(module))
                allowed.append({name: (*each, *shape) for name, shape in shapes.items()})
            if found not in allowed:
                sides = " x ".join(map(str, (*experts, out_features, in_features)))
                raise BoneError(
                    f"{where} does not fit this base: {shown(module)} is {sides} there, and the adapter has "
                    f"{', '.join(f'{name} {shape}' for name, shape in found.items())}."
                )

    def expanded(self, shape_of: ShapeOf | None) -> Adapter:
        """With MiSS 'mini' written out as Bone; needs the shapes of the base for it. Others: itself."""
        if self.mini_r is None:
            return self
        if shape_of is None:
            raise BoneError("MiSS 'mini' does not say how wide its layers are: name the base with --base.")
        layers: dict[str, Params] = {}
        for module, params in self.layers.items():
            out_features = shape_of(module)[-2]
            if out_features % self.mini_r:
                raise BoneError(
                    f"This adapter does not fit its base: {module} has {out_features} outputs, and mini_r="
                    f"{self.mini_r} does not divide that."
                )
            layers[module] = {"bone_block": params["bone_block"].repeat(1, out_features // self.mini_r)}
        return replace(self, layers=layers, mini_r=None)


def _shape_problem(variant: type[Variant], module: str, params: Params) -> str | None:
    # Every model calls the module with the experts by this name.
    experts = experts_of(variant, params) if ".experts." in f".{module}" else None
    if experts and all(tensor.ndim > 0 and len(tensor) == experts for tensor in params.values()):
        params = of_expert(variant, params, 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in params.items()}
    dimensions = {name: len(shape) for name, shape in variant.shapes(1, 1, 1).items()}
    if any(0 in shape for shape in shapes.values()):
        return f"has a tensor of shape {next(iter(shapes.values()))}, which has no elements"
    if (
        dimensions != {name: len(shape) for name, shape in shapes.items()}
        or variant.shapes(*variant.sides(params)) != shapes
    ):
        return f"has tensors of shapes {list(shapes.values())}, which is not {variant.name}"
    return None
