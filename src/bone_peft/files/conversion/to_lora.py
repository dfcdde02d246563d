"""Any variant as LoRA: ``dW = B A``, exactly or as near as a rank allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.method import BoneConfig
from bone_peft.method.variants import Params, Variant, experts_of, of_expert

from ..adapters import Adapter
from ..adapters.peft_folder import with_sizes
from ..checkpoints.checkpoint import is_finite


class Base(Protocol):
    """What a conversion may ask of a base."""

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def shape_of(self, module: str) -> tuple[int, ...]: ...

    def transposed(self, module: str) -> bool: ...


def exact(adapter: Adapter, base: Base) -> Adapter:
    """The adapter as Bottleneck, which is LoRA by other names.

    Raises:
        BoneError: if ``dW`` is of full rank.
    """
    layers: dict[str, Params] = {}
    for module, params in adapter.layers.items():
        factors = _factors(adapter.variant, params, base.shape_of(module)[-1])
        if factors is None:
            raise BoneError(
                f"{adapter.variant.name} is no LoRA, as its dW is of full rank: give --rank or --energy for "
                "the nearest one."
            )
        layers[module] = {"bone_down": factors[0].contiguous(), "bone_up": factors[1].contiguous()}
    return _bottleneck(adapter, layers)


def _factors(variant: type[Variant], params: Params, in_features: int) -> tuple[Tensor, Tensor] | None:
    """Those of each expert, one behind the other, or the only ones."""
    experts = experts_of(variant, params)
    found = [variant.lora_factors(of_expert(variant, params, e), in_features) for e in range(experts or 1)]
    if found[0] is None:
        return None
    downs, ups = zip(*(pair for pair in found if pair is not None), strict=True)
    return (torch.stack(downs), torch.stack(ups)) if experts is not None else (downs[0], ups[0])


def nearest(adapter: Adapter, base: Base, rank: int | None, energy: float | None) -> tuple[Adapter, dict[str, float]]:
    """The nearest LoRA of a rank, and its error in every layer. One of ``rank`` and ``energy`` is given.

    Returns:
        The adapter as Bottleneck, and ``|dW' - dW| / |dW|`` (Frobenius) by module.
    """
    if (rank is None) == (energy is None):
        raise BoneError("Give either a rank or an energy, not both.")
    if rank is not None and rank < 1:
        raise BoneError(f"The rank has to be at least 1, and it is {rank}.")
    if energy is not None and not 0 < energy <= 1:
        raise BoneError(f"The energy has to be above 0 and at most 1, and it is {energy}.")
    layers: dict[str, Params] = {}
    errors: dict[str, float] = {}
    for module, dtype, delta in _deltas(adapter, base):
        try:
            u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        except torch.linalg.LinAlgError:
            raise BoneError(f"The dW of {module} has no singular values: its numbers are too large.") from None
        squares = s.double().square()
        total = squares.sum()
        kept = min(rank, len(s)) if rank is not None else _needed(squares, energy or 1.0)
        root = s[:kept].sqrt()
        up, down = (u[:, :kept] * root).to(dtype), (root[:, None] * vh[:kept]).to(dtype)
        layers[module] = {"bone_down": down.contiguous(), "bone_up": up.contiguous()}
        # Measured on the tensors as they are written, so that their rounding counts too.
        left = torch.linalg.norm((up.to(delta.dtype) @ down.to(delta.dtype) - delta).double())
        errors[module] = float(left / total.sqrt()) if total > 0 else 0.0
    return _bottleneck(adapter, layers), errors


def one_rank(adapter: Adapter) -> Adapter:
    """The same Bottleneck, filled up with zeros to the largest rank. ``dW`` does not change.

    PEFT keeps a rank and a scaling for each module. llama.cpp keeps one ``alpha`` for all, and divides it by each
    tensor's own rank.
    """
    r = max(adapter.r(module) for module in adapter.layers)
    layers: dict[str, Params] = {}
    for module, params in adapter.layers.items():
        missing = r - adapter.r(module)
        down = torch.nn.functional.pad(params["bone_down"], (0, 0, 0, missing))  # Of experts, too: from behind.
        layers[module] = {"bone_down": down, "bone_up": torch.nn.functional.pad(params["bone_up"], (0, missing))}
    config = replace(adapter.config, bottleneck_size=r, bottleneck_alpha=1.0, rank_pattern={})
    return replace(adapter, config=config, layers=layers)


def _needed(squares: Tensor, energy: float) -> int:
    """The smallest rank that keeps a share of the sum of squares."""
    share = squares.cumsum(0) / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)
    return min(int((share < energy).sum()) + 1, len(squares))


@torch.no_grad()
def _deltas(adapter: Adapter, base: Base) -> Iterator[tuple[str, torch.dtype, Tensor]]:
    for module, params in adapter.layers.items():
        if len(base.shape_of(module)) > 2:
            raise BoneError(
                f"{module} holds the matrices of all experts, and of those the nearest LoRA is not computed: convert "
                "Bone or Bottleneck, which are LoRAs exactly, or merge."
            )
        stored = base.tensors.get(f"{module}.weight")
        if stored is None:
            raise BoneError(f"The base has no {module}.weight as a tensor of its own, so dW cannot be computed.")
        weight = stored.read().float()
        if not is_finite(weight):
            raise BoneError(
                f"The base holds NaN or infinity in {module}.weight: it is broken, take another copy of it."
            )
        weight = weight.T if base.transposed(module) else weight
        dtype = next(iter(params.values())).dtype
        held = {name: tensor.float() for name, tensor in params.items()}
        yield module, dtype, adapter.variant.delta_weight(held, weight)


def _bottleneck(adapter: Adapter, layers: dict[str, Params]) -> Adapter:
    old = adapter.config
    config = BoneConfig(
        bottleneck_size=1,
        bottleneck_dropout=getattr(old, adapter.variant.dropout_field),
        bias=old.bias,
        target_modules=old.target_modules,
        exclude_modules=old.exclude_modules,
        modules_to_save=old.modules_to_save,
        layers_to_transform=old.layers_to_transform,
        layers_pattern=old.layers_pattern,
        task_type=old.task_type,
        base_model_name_or_path=old.base_model_name_or_path,
        revision=old.revision,
        inference_mode=old.inference_mode,
    )
    sizes = {module: params["bone_down"].shape[0] for module, params in layers.items()}
    return Adapter(with_sizes(config, sizes), layers, adapter.whole)
