"""What goes into an adapter's files: whole tensors, in the shapes of its variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch.distributed
from torch import Tensor, nn

from bone_peft.errors import BoneError

from ..compat.zero3 import put_together
from .layer import BoneLayer
from .sharded import is_sharded, whole
from .tensors import LEAF

_WRITES = ContextVar("_WRITES", default=False)


@contextmanager
def writing() -> Iterator[None]:
    """While this process writes what it asks a model for."""
    token = _WRITES.set(True)
    try:
        yield
    finally:
        _WRITES.reset(token)


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """What is trained in ``model``, whole, on the CPU, by its keys in ``model.state_dict()``.

    Every process has to ask. Enough for ``save_pretrained(state_dict=...)``, and nothing of the base is put together.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with put_together(trained.values()):
        tensors = {key: tensor for key, tensor in model.state_dict().items() if key in trained}
        return {key: whole(tensor).detach().to("cpu", copy=True) for key, tensor in tensors.items()}


def without_split_base(model: nn.Module) -> dict[str, Any]:
    """``model.state_dict()`` without what tensor parallel has split and nobody trains.

    PEFT would put all of that together, and wait for every process to ask for it.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        key: tensor
        for key, tensor in model.state_dict().items()
        if key in trained or ".modules_to_save." in key or not is_sharded(tensor)
    }


def check_saved(model: nn.Module, adapter_name: str, tensors: Mapping[str, Any]) -> None:
    """Raise ``BoneError`` if one of the adapter's tensors is a part of what it should be.

    A DTensor knows what it is a part of, and checkpoints of several processes want it: only files do not take it.

    Args:
        model: has the adapter.
        adapter_name: its name.
        tensors: by their keys in ``model.state_dict()``.
    """
    if not _WRITES.get() and _is_another_process():
        # What is gathered, the first process gets alone.
        return
    for name, layer in model.named_modules():
        if not isinstance(layer, BoneLayer) or adapter_name not in layer.bone_variant:
            continue
        variant, r = layer.bone_variant[adapter_name], layer.bone_r[adapter_name]
        for parameter, shape in layer._shapes(adapter_name, variant, r).items():
            key = f"{name.replace('_fsdp_wrapped_module.', '')}.{parameter}"
            found = tensors[f"{key}.{adapter_name}.{LEAF}"]
            sharded = _WRITES.get() and is_sharded(found)
            if sharded or tuple(found.shape) != shape:
                what = "sharded" if sharded else f"{tuple(found.shape)} here and {shape} as a whole"
                raise BoneError(
                    f"{key} is {what}: gather the state dict in all processes (with FSDP2, get_model_state_dict() of "
                    "torch.distributed.checkpoint.state_dict with full_state_dict=True) and save with state_dict=it "
                    "in the first."
                )


def _is_another_process() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
