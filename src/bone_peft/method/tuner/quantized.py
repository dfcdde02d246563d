"""Reading the weight of a quantized base layer."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from bone_peft.errors import BoneError

from ..compat.quantization import QuantizationBackend
from .sharded import whole


def dequantized(backend: QuantizationBackend, base: nn.Module) -> Tensor:
    """The weight ``(out, in)`` of ``base`` as floating point numbers. ``base`` is left as it is.

    Raises:
        BoneError: if the backend cannot dequantize.
    """
    if not backend.supports_merge:
        raise BoneError(
            f"This needs the weight itself, and {backend.backend_name} layers cannot be dequantized: use another "
            "quantization, or a variant that leaves the weight alone (Bone, Bottleneck, or Bat with share='input')."
        )
    weight: Any = base.weight
    state = getattr(weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        return _dequantized_from_cpu_layout(weight.data, state)
    of_layer: Any = getattr(base, "quant_state", None)
    if state is None and of_layer is not None:
        # FSDP2 puts a plain parameter together, and bitsandbytes tells it what it is when the layer is called.
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(whole(weight.data), of_layer)
    return backend.get_base_weight(base)


def _dequantized_from_cpu_layout(packed: Tensor, state: Any) -> Tensor:
    """Once a 4-bit layer has run on a CPU for inference, bitsandbytes keeps it in a layout that it cannot dequantize.

    Its way back changes the quantization state, so that happens to a copy.
    """
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse, dequantize_4bit

    weight, unpacked = _convert_weight_packed_for_cpu_inverse(packed, copy.copy(state))
    return dequantize_4bit(weight, unpacked)
