"""What merging changes: which parameters, and into what."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.io.names import brief
from bone_peft.method import BoneLayer, BoneModel
from bone_peft.method.variants import Params, Variant

from ..adapters import Adapter
from ..checkpoints import Checkpoint, Edit
from ..checkpoints.experts_edit import ExpertsEdit


@dataclass(frozen=True)
class Weighted:
    """An adapter, where it came from, and the factor on its ``dW``."""

    adapter: Adapter
    where: str
    weight: float = 1.0


def plan(base: Checkpoint, adapters: Sequence[Weighted]) -> dict[str, Edit]:
    """The edits, by parameter name, that ``merge_and_unload()`` would do.

    Args:
        base: to merge into.
        adapters: in their order. Several of them compose as several active adapters do.

    Raises:
        BoneError: an adapter does not fit the base, has NaN, or two of them bring the same whole parameter.
    """
    layers: dict[str, list[tuple[type[Variant], Params]]] = {}
    whole: dict[str, tuple[str, Any]] = {}
    for given in adapters:
        adapter = given.adapter.expanded(base.shape_of)
        if base.model is not None:
            adapter = adapter.joined(base.model)
        adapter.check_finite(given.where)
        adapter.check_fits(base, given.where)
        _check_complete(base, adapter, given.where)
        for module, params in adapter.layers.items():
            layers.setdefault(module, []).append((adapter.variant, _weighted(adapter, params, given.weight)))
        for name, tensor in adapter.whole.items():
            if name in whole:
                raise BoneError(f"{whole[name][0]} and {given.where} both bring {name}: merge one of them only.")
            whole[name] = (given.where, tensor)

    edits = {name: Edit(replacement=tensor, name=name) for name, (_, tensor) in whole.items()}
    for module, stack in layers.items():
        fused = base.fused(module)
        name = f"{module}.weight" if fused is None else module
        before = edits.get(name, Edit(name=name) if fused is None else ExpertsEdit(name=name, fused=fused))
        edits[name] = replace(before, adapters=stack, transposed=fused is None and base.transposed(module))
        stored = base.tensors.get(name)
        if stored is not None and (
            stored.dtype is None or not stored.dtype.is_floating_point or stored.dtype.itemsize < 2
        ):
            raise BoneError(f"{base.name} holds {name} as {stored.dtype}, which cannot be merged into.")
    return edits


def _weighted(adapter: Adapter, params: Params, weight: float) -> Params:
    # PEFT holds adapters in at least float32, and scales them there.
    held = {name: tensor.float() if tensor.itemsize < 4 else tensor for name, tensor in params.items()}
    return held if weight == 1 else adapter.variant.scaled(held, weight)


def _check_complete(base: Checkpoint, adapter: Adapter, where: str) -> None:
    """The tuner itself says which layers this config adapts; all of them have to be there."""
    if base.model is None:
        return
    config = copy.copy(adapter.config)
    config.modules_to_save = None
    try:
        tuned = BoneModel(copy.deepcopy(base.model), config, "default", low_cpu_mem_usage=True)
    except ValueError as error:
        raise BoneError(f"{where} does not fit {base.name}: {brief(error)}") from None
    expected = {name for name, module in tuned.model.named_modules() if isinstance(module, BoneLayer)}
    for module in sorted(expected ^ set(adapter.layers)):
        if module in expected:
            raise BoneError(f"{where} has no tensors for {module}, which its config adapts: the file is incomplete.")
        raise BoneError(f"{where} has tensors for {module}, which its config does not adapt: the two do not fit.")
