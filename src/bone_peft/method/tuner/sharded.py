"""Tensors of which each process has a part: PyTorch's DTensor, as FSDP2 (``fully_shard``) makes them, and ZeRO-3's."""

from __future__ import annotations

from typing import Any

import torch.distributed
from torch import Tensor

from ..compat.zero3 import is_partitioned

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Replicate

FILES_INSTEAD = "save the adapter with its gathered state dict, and merge the files with `bone merge`"


def is_sharded(tensor: Any) -> bool:
    """Whether this process has a part of ``tensor`` alone."""
    return torch.distributed.is_available() and isinstance(tensor, DTensor)


def is_spread(model: Any) -> bool:
    """Whether this process has parts of ``model`` alone, so that all of them have to run it together."""
    return any(is_sharded(parameter) or is_partitioned(parameter) for parameter in model.parameters())


def own(parameter: Any) -> Tensor:
    """What this process has of ``parameter``: of any shape, and perhaps filled up with zeros."""
    if is_partitioned(parameter):
        return parameter.ds_tensor
    return parameter.detach().to_local() if is_sharded(parameter) else parameter.detach()


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``. Every process has to ask for it."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def part(tensor: Tensor, like: Any) -> Tensor:
    """What this process keeps of ``tensor``, of which it has all, where it keeps a part of ``like``."""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    everywhere = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(tensor, like.device_mesh, everywhere, run_check=False).redistribute(
        placements=like.placements
    )


def is_managed(layer: Any) -> bool:
    """Whether FSDP looks after tensors of ``layer``."""
    return any(map(is_managed_itself, layer.modules()))


def is_managed_itself(module: Any) -> bool:
    return getattr(module, "_is_fsdp_managed_module", False)


def reshard(layer: Any) -> None:
    """Have FSDP2 let go of tensors of ``layer`` that it has put together. What is written into those is lost.

    It keeps those of the outermost module after each run, and others if it is told to.
    """
    if is_managed(layer):
        layer.state_dict()  # It has a hook there.
