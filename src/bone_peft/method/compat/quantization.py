"""Quantized layers. PEFT has backends for them since 0.20; before, ours are used."""

try:
    from peft.utils import get_quantization_kwargs, quantization_extra_repr, resolve_quantization_backend
    from peft.utils.quantization_utils import QuantizationBackend
except ImportError:
    from .own_backends import (  # type: ignore[assignment]
        QuantizationBackend,
        get_quantization_kwargs,
        quantization_extra_repr,
        resolve_quantization_backend,
    )

__all__ = ["QuantizationBackend", "get_quantization_kwargs", "quantization_extra_repr", "resolve_quantization_backend"]
