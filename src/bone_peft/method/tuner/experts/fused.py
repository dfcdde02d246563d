"""A 3-D parameter with the matrices of all experts, as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bone_peft.errors import BoneError

from ...ops.routing import Routing

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class FusedLinear(nn.Linear):
    """One projection of all experts. Called with tokens and a routing.

    Matrices are spoken of as ``(experts, out, in)``, and the outputs of fused parts, gate and up, as lying side by
    side. How a model keeps them is this class's business.

    Args:
        weight: the model's own parameter, ``(experts, out, in)``, or ``(experts, in, out)`` if ``is_transposed``.
        bias: ``(experts, out)`` or ``None``.
        parts: the names of the projections that it is made of, side by side along ``out``.
        is_transposed: see ``weight``.
        is_interleaved: whether the outputs of the parts take turns.
    """

    def __init__(
        self, weight: Any, bias: Any, parts: tuple[str, ...], is_transposed: bool = False, is_interleaved: bool = False
    ) -> None:
        experts, out_features, in_features = weight.mT.shape if is_transposed else weight.shape
        super().__init__(in_features, out_features, bias=False, device="meta")
        # Not as attributes: PEFT loads adapters while whatever is registered goes to the meta device.
        self._parameters["weight"], self._parameters["bias"] = weight, bias
        self.experts, self.parts = experts, parts
        self.is_transposed, self.is_interleaved = is_transposed, is_interleaved

    def forward(self, x: Tensor, routing: Routing, outputs: slice = slice(None)) -> Tensor:  # type: ignore[override]
        """``x (tokens, in)`` to ``(rows, out)``, as the model keeps its outputs; or to some of them."""
        # Autocast leaves experts in the dtype that they are in, as Transformers' own grouped products do.
        weight = self.weight if self.is_transposed else self.weight.mT
        y = routing.products(x.to(weight.dtype), weight[..., outputs])
        return y if self.bias is None else y + self.bias[..., outputs][routing.experts].to(y.dtype)

    def matrices(self, weight: Tensor) -> Tensor:
        """``weight``, as the model keeps it, as ``(experts, out, in)``."""
        return self.side_by_side(weight if self.is_transposed else weight.mT).mT

    def stored(self, matrices: Tensor) -> Tensor:
        """``(experts, out, in)`` as the model keeps them."""
        kept = self.as_kept(matrices.mT)
        return (kept if self.is_transposed else kept.mT).contiguous()

    def side_by_side(self, y: Tensor) -> Tensor:
        """Outputs ``(..., out)`` as the model keeps them, with the parts side by side."""
        return y if not self.is_interleaved else y.unflatten(-1, (-1, len(self.parts))).mT.flatten(-2)

    def as_kept(self, y: Tensor) -> Tensor:
        """The way back."""
        return y if not self.is_interleaved else y.unflatten(-1, (len(self.parts), -1)).mT.flatten(-2)

    def extra_repr(self) -> str:
        return f"experts={self.experts}, {super().extra_repr()}"


def number_of_experts(layer: Any) -> int:
    """Of a projection, under its adapters."""
    base: FusedLinear = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    return base.experts


def check_held(name: str, weight: Tensor, experts: nn.Module) -> None:
    """Raise ``BoneError`` if the parameter is not there to compute with, in floating point."""
    if weight.dtype not in FLOATS:
        raise BoneError(
            f"{name} holds its experts as {str(weight.dtype).removeprefix('torch.')}, and Bone adapts experts in "
            "floating point: load the model dequantized, or name it in exclude_modules."
        )
    if weight.is_meta and "_hf_hook" in vars(experts):
        raise BoneError(
            f"{name} is offloaded, and Bone adapts experts that stay where they are computed: give the model another "
            "device_map, or name it in exclude_modules."
        )
