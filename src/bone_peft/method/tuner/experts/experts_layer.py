"""``BoneExperts``: one projection of all experts, with Bone adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from bone_peft.errors import BoneError

from ...ops.routing import Routing
from ...variants import BelowExperts, Dropout, Params, Variant, delta_weight_of_expert, of_part, parts_of
from .. import mixed_rows
from ..config import BoneConfig
from ..layer import BoneLayer, merge_dtype
from ..sharded import is_sharded, reshard, whole
from .fused import FusedLinear


@dataclass
class _Frozen:
    """The frozen projection, with its outputs side by side, or some of them."""

    layer: FusedLinear
    outputs: slice | None = None

    @property
    def experts(self) -> int:
        return self.layer.experts

    @property
    def frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in self.layer.parameters())

    def output(self, x: Tensor, routing: Routing) -> Tensor:
        if self.outputs is not None:
            return self.layer(x, routing, self.outputs)
        return self.layer.side_by_side(self.layer(x, routing))

    def weight(self, dtype: torch.dtype) -> Tensor:
        weight = self.layer.matrices(self.layer.weight)
        return (weight if self.outputs is None else weight[:, self.outputs]).to(dtype)

    def biases(self, routing: Routing) -> Tensor | None:
        if self.layer.bias is None:
            return None
        bias = self.layer.side_by_side(self.layer.bias)
        return (bias if self.outputs is None else bias[:, self.outputs])[routing.experts]

    def part(self, part: int, parts: int) -> BelowExperts:
        return _Frozen(self.layer, _span(self.layer.out_features, part, parts))


@dataclass
class _Adapted:
    """One adapter on top of what is below it."""

    below: BelowExperts
    variant: type[Variant]
    params: Params
    dropout: Dropout | None
    out_features: int

    frozen = False

    @property
    def experts(self) -> int:
        return self.below.experts

    def output(self, x: Tensor, routing: Routing) -> Tensor:
        parts = parts_of(self.variant, self.params, self.experts)
        if parts > 1:
            return torch.cat([self.part(part, parts).output(x, routing) for part in range(parts)], -1)
        return self.variant.forward_by_expert(x, self.params, self.below, self.dropout, routing)

    def part(self, part: int, parts: int) -> BelowExperts:
        if parts_of(self.variant, self.params, self.experts) == parts:
            params: Params = {name: tensor[part::parts].contiguous() for name, tensor in self.params.items()}
        else:
            span = _span(self.out_features, part, parts)
            params = self.variant.rows(self.params, span.start, span.stop)
        below = self.below.part(part, parts)
        return _Adapted(below, self.variant, params, self.dropout, self.out_features // parts)

    def weight(self, dtype: torch.dtype) -> Tensor:
        weight = self.below.weight(dtype)
        return weight + _delta_weight(self.variant, {k: t.to(dtype) for k, t in self.params.items()}, weight)

    def biases(self, routing: Routing) -> Tensor | None:
        return self.below.biases(routing)


class BoneExperts(nn.Module, BoneLayer):
    """A frozen projection of all experts with Bone adapters.

    Args:
        base_layer: the projection.
        adapter_name: name of the first adapter.
        r: size of its tensors.
        config: all other options.
        kwargs: as for ``BoneLinear``.

    Attributes:
        bone_shared: ``dict``, whether all experts have the one adapter of that name.
        bone_parts: ``dict``, how many adapters of that name an expert has: one, or one for each part of the projection.
    """

    other_param_names = (*BoneLayer.other_param_names, "bone_shared", "bone_parts")

    def __init__(self, base_layer: FusedLinear, adapter_name: str, r: int, config: BoneConfig, **kwargs: Any) -> None:
        super().__init__()
        self.bone_shared: dict[str, bool] = {}
        self.bone_parts: dict[str, int] = {}
        BoneLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, config=config)

    def update_layer(self, adapter_name: str, r: int = 0, *args: Any, **kwargs: Any) -> None:
        config = kwargs["config"]
        self.bone_shared[adapter_name] = config.experts == "shared"
        self.bone_parts[adapter_name] = 1
        try:
            super().update_layer(adapter_name, r, *args, **kwargs)
        except BoneError:
            if adapter_name not in self.bone_variant:
                del self.bone_shared[adapter_name], self.bone_parts[adapter_name]
            raise

    def fit(self, adapter_name: str, params: Params) -> None:
        parts = parts_of(self.bone_variant[adapter_name], params, self.fused.experts)
        if parts == self.bone_parts[adapter_name] or parts not in (1, len(self.fused.parts)):
            return
        if self.fused.is_interleaved:
            raise BoneError(
                f"the outputs of {' and '.join(self.fused.parts)} take turns in this model, and in the file they have "
                "two adapters that are not the same: merge it, or use Transformers before 5"
            )
        if any(map(is_sharded, self._parameters_of(adapter_name).values())):
            raise BoneError(
                "this adapter has two blocks for an expert's gate and up: load it before the model is sharded"
            )
        self.bone_parts[adapter_name] = parts
        for name, old in self._parameters_of(adapter_name).items():
            shape = self._shapes(adapter_name, self.bone_variant[adapter_name], self.bone_r[adapter_name])[name]
            tensors = getattr(self, name)
            tensors[adapter_name] = nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad)

    # What a layer of experts has another way than a linear layer

    def _refusal(self, variant: type[Variant], r: int) -> str | None:
        # The parts are separate projections in other versions of Transformers, and in other programs.
        return variant.refusal(self.in_features, self.out_features // len(self.fused.parts), r)

    def _shapes(self, adapter_name: str, variant: type[Variant], r: int) -> dict[str, tuple[int, ...]]:
        parts = self.bone_parts[adapter_name]
        shapes = variant.shapes(self.in_features, self.out_features // parts, r)
        if self.bone_shared[adapter_name]:
            return shapes
        return {name: (self.fused.experts * parts, *shape) for name, shape in shapes.items()}

    def _initialize(self, adapter_name: str, init_weights: bool | str) -> None:
        values = {name: parameter.data for name, parameter in self._parameters_of(adapter_name).items()}
        for params in self._by_expert(adapter_name, values):
            self.bone_variant[adapter_name].initialize(params, init_weights)

    def combined(self, adapter_names: Sequence[str], weights: Sequence[float]) -> Params:
        variant, first = self.bone_variant[adapter_names[0]], adapter_names[0]
        parts = max(self.bone_parts[name] for name in adapter_names)
        adapters = zip(*(self._by_expert(name, self._scaled(name), parts) for name in adapter_names), strict=True)
        found = [variant.combined(each, weights) for each in adapters]
        return found[0] if self.bone_shared[first] else {key: torch.stack([p[key] for p in found]) for key in found[0]}

    def _by_expert(self, adapter_name: str, params: Params, parts: int = 1) -> list[Params]:
        """The tensors of each expert, or of each of its parts, or the only ones."""
        if self.bone_shared[adapter_name]:
            return [params]
        variant, out, number = self.bone_variant[adapter_name], self.out_features, self.fused.experts
        places = product(range(number), range(parts))
        return [of_part(variant, params, out, expert, number, part, parts) for expert, part in places]

    @property
    def fused(self) -> FusedLinear:
        """The frozen projection."""
        base: Any = self.get_base_layer()
        return base

    def _base_weight(self) -> Tensor:
        base = self.fused
        return base.matrices(base.weight)

    def get_delta_weight(self, adapter: str, orig_weight: Tensor | None = None) -> Tensor:
        """``dW`` of one adapter, as the model keeps the weight: in at least float32."""
        reshard(self)
        base = self.fused
        weight = base.matrices(whole(base.weight if orig_weight is None else orig_weight))
        weight = weight.to(merge_dtype(weight.dtype))
        params = {key: tensor.to(weight.dtype) for key, tensor in self._scaled(adapter).items()}
        return base.stored(_delta_weight(self.bone_variant[adapter], params, weight))

    @torch.no_grad()
    def _merged_weight(self, adapter_names: Sequence[str]) -> Tensor:
        # Expert by expert, so that only one of them is there in float32.
        base = self.fused
        kept = whole(base.weight.detach() if self._unmerged_base is None else self._unmerged_base.weight)
        merged = torch.empty_like(base.matrices(kept))
        dtype = merge_dtype(kept.dtype)
        adapters = [
            (self.bone_variant[name], {key: tensor.to(dtype) for key, tensor in self._scaled(name).items()})
            for name in adapter_names
        ]
        for expert, matrix in enumerate(base.matrices(kept)):
            changed = matrix.to(dtype)
            for variant, params in adapters:
                changed = changed + delta_weight_of_expert(variant, params, changed, expert, base.experts)
            merged[expert] = changed
        return base.stored(merged)

    # Forward

    def forward(self, x: Tensor, routing: Routing, adapter_names: Sequence[str] | None = None) -> Tensor:
        """``x (tokens, in)`` to ``(rows, out)``, as the model keeps its outputs.

        ``adapter_names``, with a name for each row of the batch, gives the tokens of each row an adapter of their own.
        """
        base = self.fused
        if self.disable_adapters:
            self._run_without_adapters()
            return base(x, routing)
        if adapter_names is not None:
            return self._forward_by_row(x, routing, adapter_names)
        names = self._unmerged(self.active_adapters)
        return self._forward_with(names, x, routing) if names else base(x, routing)

    def _forward_with(self, adapter_names: Sequence[str], x: Tensor, routing: Routing) -> Tensor:
        base = self.fused
        dropouts: Any = self.bone_dropout if self.training else ()
        stack: BelowExperts = _Frozen(base)
        for name in self._present(adapter_names):
            dropout = dropouts[name] if name in dropouts else None  # noqa: SIM401 - ModuleDict has no get
            stack = _Adapted(stack, self.bone_variant[name], self._scaled(name), dropout, base.out_features)
        return base.as_kept(stack.output(x.to(base.weight.dtype), routing))

    def _forward_by_row(self, x: Tensor, routing: Routing, adapter_names: Sequence[str]) -> Tensor:
        """Each adapter on all rows, and each row from its own."""
        if self.merged:
            raise BoneError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        number = len(routing.places)
        if number % len(adapter_names):
            raise BoneError(
                f"The experts get {number} tokens for {len(adapter_names)} rows, so it cannot be "
                "told which token is whose: leave adapter_names out, or the experts in exclude_modules."
            )
        own = routing.tokens // (number // len(adapter_names))
        return mixed_rows.chosen(own, adapter_names, lambda name: self._forward_with([name], x, routing))

    def __repr__(self) -> str:
        return "bone." + super().__repr__()


def _delta_weight(variant: type[Variant], params: Params, weight: Tensor) -> Tensor:
    """``dW (experts, out, in)``."""
    each = (delta_weight_of_expert(variant, params, own, expert, len(weight)) for expert, own in enumerate(weight))
    return torch.stack(list(each))


def _span(out_features: int, part: int, parts: int) -> slice:
    step = out_features // parts
    return slice(part * step, (part + 1) * step)
