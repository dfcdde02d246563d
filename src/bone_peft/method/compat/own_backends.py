"""PEFT's ``quantization_utils`` for PEFT < 0.20: bitsandbytes; layers of torchao can be run and not merged."""

from __future__ import annotations

from typing import Any

from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor, nn


class QuantizationBackend:
    """How the weight of a quantized layer is read and replaced. This one can do neither."""

    supports_merge = False
    backend_name = ""
    layer_type = "linear"

    def __init__(self, backend_name: str = "") -> None:
        self.backend_name = backend_name or self.backend_name

    def get_base_weight(self, base_layer: Any) -> Tensor:
        raise TypeError(f"{self.backend_name} layers cannot be dequantized with this version of PEFT.")

    def set_base_weight(self, peft_layer: Any, weight_data: Tensor) -> None:
        raise TypeError(f"{self.backend_name} layers cannot be quantized again with this version of PEFT.")

    def maybe_clone_base_result(self, x: Tensor) -> Tensor:
        return x


class _Bnb8bit(QuantizationBackend):
    supports_merge = True
    backend_name = "bnb 8bit"

    def get_base_weight(self, base_layer: Any) -> Tensor:
        return dequantize_bnb_weight(base_layer.weight, state=base_layer.state)

    def set_base_weight(self, peft_layer: Any, weight_data: Tensor) -> None:
        import bitsandbytes as bnb

        base = peft_layer.get_base_layer()
        old = base.weight
        new: Any = bnb.nn.Int8Params(weight_data.cpu(), requires_grad=False, has_fp16_weights=old.has_fp16_weights)
        base.weight = new.to(old.device)
        base.state.reset_grads()


class _Bnb4bit(QuantizationBackend):
    supports_merge = True
    backend_name = "bnb 4bit"

    def get_base_weight(self, base_layer: Any) -> Tensor:
        return dequantize_bnb_weight(base_layer.weight, state=base_layer.weight.quant_state)

    def set_base_weight(self, peft_layer: Any, weight_data: Tensor) -> None:
        import bitsandbytes as bnb

        base = peft_layer.get_base_layer()
        # torch.compile leaves attributes that begin with "_".
        options = {name: value for name, value in vars(base.weight).items() if not name.startswith("_")}
        options |= {"bnb_quantized": False, "requires_grad": False}
        options.pop("data", None)
        new: Any = bnb.nn.Params4bit(weight_data.cpu(), **options)
        base.weight = new.to(base.weight.device)

    def maybe_clone_base_result(self, x: Tensor) -> Tensor:
        return x.clone()  # Autograd may not work on a view of what bitsandbytes returns.


def resolve_quantization_backend(base_layer: nn.Module, **_: Any) -> QuantizationBackend | None:
    """The backend for a layer, ``None`` if it is not quantized."""
    if is_bnb_available():
        import bitsandbytes as bnb

        if isinstance(base_layer, bnb.nn.Linear8bitLt):
            return _Bnb8bit()
        if is_bnb_4bit_available() and isinstance(base_layer, bnb.nn.Linear4bit):
            return _Bnb4bit()
    weight = getattr(base_layer, "weight", None)
    if isinstance(weight, Tensor) and type(weight).__module__.startswith("torchao"):
        return QuantizationBackend("torchao")
    return None


def quantization_extra_repr(module: Any) -> str:
    """What a layer adds to its ``repr``."""
    parts = [nn.Module.extra_repr(module)]
    if module.quantization_backend is not None:
        parts.append(f"quantization_backend='{module.quantization_backend.backend_name}'")
    return ", ".join(filter(None, parts))


def get_quantization_kwargs(_: nn.Module) -> dict[str, Any]:
    """What the backends above want to know of the model: nothing."""
    return {}
