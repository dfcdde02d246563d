"""Layers that tensor parallel has split, by Transformers' plans: each process computes with its part of the weight.

A process sees a smaller linear layer, with the part of the adapter that belongs to it. The adapter's tensors are whole
in every process, and so are their gradients.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

from bone_peft.errors import BoneError

from ..compat.tensor_parallel import check_known, parts_of
from ..ops import ranks
from ..variants import Params, Variant
from .sharded import is_managed, is_sharded
from .stack import Frozen, is_plain

_STYLES: dict[str, Literal["out", "in"]] = {"colwise": "out", "rowwise": "in"}


@dataclass(frozen=True)
class Split:
    """How a weight ``(out, in)`` is spread over processes.

    Attributes:
        side: the one that is cut: ``colwise`` cuts ``out``, ``rowwise`` cuts ``in``.
        mesh: the processes.
        ends: where the parts end.
    """

    side: Literal["out", "in"]
    mesh: Any
    ends: tuple[int, ...]

    @property
    def start(self) -> int:
        return (0, *self.ends)[self.mesh.get_local_rank()]

    @property
    def stop(self) -> int:
        return self.ends[self.mesh.get_local_rank()]

    @property
    def group(self) -> Any:
        return self.mesh.get_group()

    def refusal(self, variant: type[Variant], in_features: int, out_features: int, r: int) -> str | None:
        """Why an adapter cannot be cut so, or ``None`` if it can. The same in all processes."""
        if len(set(self.ends)) < len(self.ends):
            return f"tensor parallel leaves nothing of this weight ({out_features} x {in_features}) to some process"
        if variant.cut_anywhere or not any(end % r for end in self.ends):
            return None
        cuts = ", ".join(map(str, self.ends[:-1]))
        return (
            f"tensor parallel cuts this weight ({out_features} x {in_features}) along {self.side} at {cuts}, within a "
            f"block of r={r}, and {variant.name} transforms whole blocks: choose an r that divides the parts, or Bone"
        )

    def of_process(self, variant: type[Variant], params: Params) -> Params:
        """What of an adapter belongs to this process. Gradients add up over all."""
        params = {name: ranks.shared(tensor, self.group) for name, tensor in params.items()}
        cut = variant.rows if self.side == "out" else variant.columns
        return cut(params, self.start, self.stop)

    def begin(self, x: Tensor) -> Tensor:
        """What this process computes with, of the input of the layer."""
        width = self.stop - self.start
        if is_sharded(x) or (self.side == "in" and x.shape[-1] != width):
            what = "a DTensor" if is_sharded(x) else f"an input of {x.shape[-1]}"
            raise BoneError(
                f"A layer that tensor parallel has split got {what} where this process computes {width} of its "
                f"{self.ends[-1]} {self.side} features: name it in exclude_modules."
            )
        return ranks.shared(x, self.group) if self.side == "out" else x

    def end(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """The output of the layer, of what this process has computed."""
        if self.side == "out":
            return y
        y = ranks.summed(y, self.group)
        return y if bias is None else y + bias.to(y.dtype)

    def same_everywhere(self, params: Params) -> None:
        """Give all processes the first one's values."""
        first = torch.distributed.get_global_rank(self.group, 0)
        for tensor in params.values():
            if not tensor.is_meta:
                torch.distributed.broadcast(tensor.data, first, group=self.group)

    def part_of(self, base: nn.Module) -> Frozen:
        """The frozen layer as this process has it; a bias that is added once, after all, is left out."""
        layer: Any = base
        return _Part(
            call=lambda x: F.linear(x, _own(layer.weight), self._bias_before(layer)),
            read_weight=lambda: _own(layer.weight),
            read_bias=lambda: self._bias_before(layer),
            layer=layer,
        )

    def bias_after(self, layer: Any) -> Tensor | None:
        return None if self.side == "out" or layer.bias is None else _own(layer.bias)

    def _bias_before(self, layer: Any) -> Tensor | None:
        return None if self.side == "in" or layer.bias is None else _own(layer.bias)


class _Part(Frozen):
    def linear(self, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        weight, bias = self.read_weight(), self.read_bias()
        plain = is_plain(weight, x) and (bias is None or is_plain(bias, x))
        return (weight, bias) if plain else None


def _own(tensor: Any) -> Tensor:
    return tensor.to_local() if is_sharded(tensor) else tensor


def split_of(model: nn.Module, key: str, layer: nn.Module) -> Split | None:
    """How the layer ``key`` of ``model`` is split over processes, or ``None`` if it is not.

    Raises:
        BoneError: if it is split in a way that no adapter can follow.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    style = _style(model, key)
    sharded = [parameter for parameter in layer.parameters() if is_sharded(parameter)]
    if style is None and (not sharded or is_managed(layer)):
        return None
    if style is None:
        raise BoneError(
            f"{key} is split over processes (its weight is a DTensor), and no plan of Transformers 5.17 or newer says "
            "how its input and output go with that: load the model with tp_plan, or name the layer in exclude_modules."
        )
    side, weight = _STYLES.get(style), getattr(layer, "weight", None)
    if side is None or type(layer) is not nn.Linear or not is_sharded(weight):
        raise BoneError(
            f"{key} is a {type(layer).__name__} that tensor parallel has split by {style!r}, and adapters follow "
            "'colwise' and 'rowwise' of torch.nn.Linear alone: name it in exclude_modules."
        )
    sharding: Any = weight
    if is_managed(layer) or sharding.device_mesh.ndim > 1:
        raise BoneError(
            f"{key} is split by tensor parallel and sharded by FSDP2 before it has an adapter, whose gradients FSDP2 "
            "would not add up: choose one of them, or shard after get_peft_model()."
        )
    size = sharding.shape[0 if side == "out" else 1]
    parts = sharding.device_mesh.size()
    width = -(-size // parts)
    return Split(side, sharding.device_mesh, tuple(min(size, width * (rank + 1)) for rank in range(parts)))


def _style(model: nn.Module, key: str) -> str | None:
    """What the plan by which Transformers has split ``model`` says about ``key``."""
    for name, module in (("", model), *model.named_children()):
        prefix = f"{name}." if name else ""
        if parts_of(module) > 1 and key.startswith(prefix):
            check_known()
            return _planned(getattr(module, "tp_plan", None) or {}, key.removeprefix(prefix))
    return None


def _planned(plan: dict[str, str], key: str) -> str | None:
    return plan.get(key) or plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", key))
