"""What a training step keeps for its backward, found out by doing one with tensors that hold no bytes."""

from __future__ import annotations

import copy
from typing import Any
from unittest.mock import patch

import torch
from peft import get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

_QUANTIZED = {"8bit": (1.0, 4.0), "4bit": (0.5 + 4 / 64, 0.0)}
"""Bytes of a weight and of an output: what it is rounded to, and scales in float32, by 64 weights or by output."""


def base_bytes(model: nn.Module, dtype: torch.dtype, quantize: str = "none") -> int:
    """Bytes of a frozen base's parameters.

    Args:
        model: an outline on the meta device.
        dtype: of what is not quantized: norms, embeddings, and the head.
        quantize: ``"none"``, ``"8bit"`` or ``"4bit"``.
    """
    total = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if quantize == "none":
        return total
    weight, output = _QUANTIZED[quantize]
    head = model.get_output_embeddings()  # type: ignore[operator]
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    return int(total + sum(m.weight.numel() * (weight - dtype.itemsize) + m.out_features * output for m in layers))


def saved_bytes(model: nn.Module, config: Any, adapter_dtype: torch.dtype, batch: int, length: int) -> int | None:
    """Bytes that autograd keeps between forward and backward, loss included, parameters not.

    Args:
        model: an outline on the meta device; it is not changed.
        config: a PEFT config, or ``None`` for the frozen model, whose input alone has a gradient.
        adapter_dtype: of the trainable parameters.
        batch, length: of the input, in rows and tokens.

    Returns:
        The bytes; ``None`` if the model cannot run on tensors without values.
    """
    model = copy.deepcopy(model)
    model.config.use_cache = False  # type: ignore[union-attr]
    model.requires_grad_(False)
    if config is not None:
        model = get_peft_model(model, config, low_cpu_mem_usage=True)
    model.train()
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # The storage is held, so that its address stays its own.
        kept[storage._cdata] = storage
        return tensor

    # Transformers looks at values for where sequences begin; without, it would keep masks, and heads repeated for them.
    one_sequence_a_row = patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None)
    try:
        with FakeTensorMode(), one_sequence_a_row, saved_tensors_hooks(keep, lambda tensor: tensor):
            _fake(model, adapter_dtype)
            hidden: int = model.get_input_embeddings().embedding_dim  # type: ignore[operator]
            dtype = next(model.parameters()).dtype
            inputs = torch.empty(batch, length, hidden, dtype=dtype, requires_grad=True)
            model(inputs_embeds=inputs, labels=torch.empty(batch, length, dtype=torch.long))
    except Exception:
        # Code that looks at values has none here. The rest of the estimate stands without this line.
        return None
    for tensor in (*model.parameters(), *model.buffers()):
        kept.pop(tensor.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())


def _fake(model: nn.Module, adapter_dtype: torch.dtype) -> None:
    """Move a model from the meta device to where forward can run."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=adapter_dtype if tensor.requires_grad else tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    owner: Any = held
                    owner[name] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
