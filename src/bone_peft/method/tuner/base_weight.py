"""The weight of a frozen layer: read, replaced by a merged one, and put back."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from bone_peft.errors import BoneError

from .sharding import is_sharded, write


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


def replace_weight(base: nn.Module, weight: Tensor, shared: bool) -> None:
    """Give ``base`` another weight: in the same parameter, unless that is ``shared`` with others, which keep it.

    Raises:
        BoneError: the parameter is shared, and each process has a shard of it.
    """
    old: Any = base.weight
    if is_sharded(old):
        if shared:
            raise BoneError(
                "a weight that is tied to another and sharded over processes takes no adapter of its own: merge the "
                "saved adapter into the base's files, with bone merge"
            )
        write(old, weight)
        return
    if not shared:
        old.data = weight
        return
    new = nn.Parameter(weight, requires_grad=old.requires_grad)
    vars(new).update(vars(old))
    base.weight = new


class Snapshot:
    """A base layer before a merge, by reference: merging writes new tensors and leaves the old ones alone.

    A shard is written to, and so kept as a copy.
    """

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        parameter: Any = base.weight
        self.parameter = parameter
        self.weight: Any = parameter.detach().clone() if is_sharded(parameter) else parameter.data
        self.attributes = dict(vars(self.parameter))
        # What bitsandbytes layers know of their weight beside the weight.
        self.quantization: dict[str, Any] = {
            name: copy.copy(vars(base)[name]) for name in ("state", "quant_state") if name in vars(base)
        }

    def restore(self) -> nn.Module:
        """Put the layer back as it was and return it."""
        current: Any = self.base.weight
        if is_sharded(self.weight):
            if not is_sharded(current):
                raise BoneError(
                    "a merged weight that is sharded over processes cannot be put back while it is gathered for a "
                    "forward pass: call unmerge_adapter() before"
                )
            write(current, self.weight)
            return self.base
        # The model may have been moved or cast since.
        self.parameter.data = self.weight.to(device=current.device, dtype=current.dtype)
        if current is not self.parameter:
            vars(self.parameter).update(self.attributes)
            self.base.weight = self.parameter
            vars(self.base).update(self.quantization)
        return self.base
