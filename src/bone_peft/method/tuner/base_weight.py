"""The weight of a frozen layer: read, replaced by a merged one, and put back."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from bone_peft.errors import BoneError

from .sharded import FILES_INSTEAD, is_sharded, part


def is_computed(base: nn.Module) -> bool:
    """Whether the weight is no parameter but follows from others: ``weight_norm``, pruning, any parametrization."""
    return "weight" not in base._parameters


def check_readable(base: nn.Module) -> None:
    """Raise ``BoneError`` if the weight is only right after ``base`` has been called."""
    by_hook = is_computed(base) and not is_parametrized(base, "weight") and len(base._forward_pre_hooks) > 0
    if by_hook:
        raise BoneError(
            "the weight of this layer is computed by a hook when it is called (torch.nn.utils' weight_norm, "
            "spectral_norm or pruning), and Bat reads it without a call: use Bone, Bottleneck or Bat with share='input'"
        )


def check_replaceable(base: nn.Module) -> None:
    """Raise ``BoneError`` if a merged weight could not be written into ``base``."""
    if is_computed(base):
        raise BoneError(
            "the weight of this layer is computed from other parameters (weight_norm, spectral_norm, pruning or "
            "another parametrization), so nothing can be merged into it: make it a plain weight first, with "
            "torch.nn.utils.parametrize.remove_parametrizations() or what else undoes it"
        )


def check_sharding(base: nn.Module, shared: bool, quantized: bool) -> None:
    """Raise ``BoneError`` if a merged weight could not take the place of one that is sharded."""
    if (shared or quantized) and is_sharded(base.weight):
        why = "quantized" if quantized else "another layer's as well"
        raise BoneError(
            f"the weight of this layer is sharded and {why}, so no merged weight can take its place: {FILES_INSTEAD}"
        )


def replace_weight(base: nn.Module, weight: Tensor, shared: bool) -> None:
    """Give ``base`` another weight: in the same parameter, unless that is ``shared`` with others, which keep it."""
    old: Any = base.weight
    if is_sharded(old):
        # FSDP2 holds on to this storage.
        old.data.copy_(part(weight, old))
        return
    if not shared:
        old.data = weight
        return
    new = nn.Parameter(weight, requires_grad=old.requires_grad)
    vars(new).update(vars(old))
    base.weight = new


class Snapshot:
    """A base layer before a merge, by reference: merging writes new tensors and leaves the old ones alone.

    Of a sharded weight it is a copy of what this process has: there merging writes in place.
    """

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        self.parameter: Any = base.weight
        kept: Any = self.parameter.data
        self.weight: Any = kept.clone() if is_sharded(kept) else kept
        self.attributes = dict(vars(self.parameter))
        # What bitsandbytes layers know of their weight beside the weight.
        self.quantization: dict[str, Any] = {
            name: copy.copy(vars(base)[name]) for name in ("state", "quant_state") if name in vars(base)
        }

    def restore(self) -> nn.Module:
        """Put the layer back as it was and return it."""
        current: Any = self.base.weight
        if is_sharded(current):
            current.data.copy_(part(self.weight, current))
            return self.base
        # The model may have been moved or cast since.
        self.parameter.data = self.weight.to(device=current.device, dtype=current.dtype)
        if current is not self.parameter:
            vars(self.parameter).update(self.attributes)
            self.base.weight = self.parameter
            vars(self.base).update(self.quantization)
        return self.base
