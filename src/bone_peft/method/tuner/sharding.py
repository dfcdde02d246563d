"""Parameters of which each process keeps a shard (FSDP2): whole to compute with, and written shard by shard."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bone_peft.errors import BoneError


def is_sharded(tensor: Any) -> bool:
    """Whether this process has a part of ``tensor``."""
    module = sys.modules.get("torch.distributed.tensor")  # without it there are none
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, gathered if need be: then all processes have to ask for it."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def write(sharded: Any, tensor: Tensor) -> None:
    """Write ``tensor``, all of it or sharded in the same way, into the shard of this process.

    In place: FSDP holds the memory of a shard, and takes no notice of another.
    """
    from torch.distributed.tensor import distribute_tensor

    if not is_sharded(tensor):
        tensor = distribute_tensor(tensor, sharded.device_mesh, sharded.placements)
    own: Any = tensor
    sharded.to_local().copy_(own.to_local())


def check_there(tensors: Mapping[str, Tensor]) -> None:
    """Raise ``BoneError`` if one of these is elsewhere: ZeRO-3 leaves nothing in its place."""
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise BoneError(
                f"{name} is sharded over processes, and nothing of it is here: gather the state dict first, by "
                "accelerator.get_state_dict(model), and give that to save_pretrained() as state_dict."
            )


def reshard(model: nn.Module, weights: dict[str, Any]) -> None:
    """Let go of what is gathered for a forward pass; what is written to that is lost.

    Args:
        model: where FSDP's modules are looked for.
        weights: what is to be written to, by the names of layers.

    Raises:
        BoneError: one of them is still gathered, by a module around ``model``.
    """
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    modules = [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp)]
    for module in modules:
        module.reshard()
    if not any(map(is_sharded, model.parameters())):
        return
    for name, weight in weights.items():
        if not is_sharded(weight):
            raise BoneError(
                f"{name} is gathered from all processes at the moment, or was left out of the sharding: call reshard() "
                "on the module that fully_shard() was given last, and then merge."
            )
