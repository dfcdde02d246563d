"""``change_norms``: how much an adapter changes each module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.method.tuner.experts.fused import FusedLinear
from bone_peft.method.variants import Params
from bone_peft.method.variants.bottleneck import Bottleneck
from bone_peft.method.variants.by_expert import delta_weight_of_expert

from .adapters import Adapter, read_adapter
from .checkpoints import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Change:
    """One module, by Frobenius norms. NaN if a tensor holds NaN or infinity.

    Attributes:
        added: of its ``dW``, or of its trained tensors, over all experts.
        weight: of the base's weight, over all experts; ``None`` without a base.
    """

    added: float
    weight: float | None = None


@dataclass(frozen=True)
class Changes:
    """An adapter.

    Attributes:
        variant: its name.
        is_of_weights: whether ``added`` is the norm of ``dW``; else of the trained tensors, where without a base there
            is no ``dW``.
        by_module: in the order of the file.
    """

    variant: str
    is_of_weights: bool
    by_module: dict[str, Change]


def change_norms(path: str | Path, base: str | None = None, *, trust_remote_code: bool = False) -> Changes:
    """Norms of what an adapter changes. Nothing is loaded: weights are read one by one.

    Without a base, Bottleneck and LoRA have the norm of ``dW``, and the others that of their trained tensors: how often
    Bone's block is repeated, or what Bat multiplies, is the base's to say.

    Args:
        path: an adapter of any format, or the folder of a run.
        base: as for :func:`bone_peft.files.checkpoints.open_checkpoint`.
        trust_remote_code: for the base.

    Raises:
        BoneError: no adapter there, or it does not fit the base.
    """
    adapter, _ = read_adapter(path)
    if base is None:
        exact = adapter.variant is Bottleneck
        norm = _of_factors if exact else _of_tensors
        alone = {module: Change(norm(_held(params))) for module, params in adapter.layers.items()}
        return Changes(adapter.variant.name, exact, alone)
    kind = adapter.config.task_type
    task = None if kind is None else str(getattr(kind, "value", kind))
    checkpoint = open_checkpoint(base, task_type=task, dtype="float32", trust_remote_code=trust_remote_code)
    adapter = adapter.expanded(checkpoint.shape_of)
    if checkpoint.model is not None:
        adapter = adapter.joined(checkpoint.model)
    adapter.check_fits(checkpoint, str(path))
    return Changes(adapter.variant.name, True, {name: _on(checkpoint, adapter, name) for name in adapter.layers})


def _held(params: Params) -> Params:
    return {name: tensor.float() if tensor.itemsize < 4 else tensor for name, tensor in params.items()}


def _norm(*tensors: Tensor) -> float:
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _of_tensors(params: Params) -> float:
    return _norm(*params.values())


def _of_factors(params: Params) -> float:
    """Of ``up down``, which is not made for it."""
    down, up = (params[name].double() for name in ("bone_down", "bone_up"))
    return float(((up.mT @ up) * (down @ down.mT)).sum().clamp_min(0).sqrt())


@torch.no_grad()
def _on(base: Checkpoint, adapter: Adapter, module: str) -> Change:
    params, variant = _held(adapter.layers[module]), adapter.variant
    fused = base.fused(module)
    if fused is None:
        stored = base.tensors.get(f"{module}.weight")
        if stored is None:
            raise BoneError(f"{base.name} has no {module}.weight as a tensor of its own, so dW cannot be computed.")
        weight = stored.read().float()
        weight = weight.T.contiguous() if base.transposed(module) else weight
        return Change(_norm(variant.delta_weight(params, weight)), _norm(weight))
    norms = [
        (_norm(delta_weight_of_expert(variant, params, weight, expert, fused.experts)), _norm(weight))
        for expert, weight in enumerate(_matrices(base, module, fused))
    ]
    whole = torch.linalg.vector_norm(torch.tensor(norms, dtype=torch.float64), dim=0)
    return Change(*whole.tolist())


def _matrices(base: Checkpoint, module: str, fused: FusedLinear) -> Iterator[Tensor]:
    """``(out, in)`` of each expert, with its parts side by side."""
    stored, apart = base.tensors.get(module), base.apart(module)
    for expert in range(fused.experts):
        if apart:
            own = [apart[place].read() for place in sorted(apart) if place[0] == expert]
            yield torch.cat(own).float()
        elif stored is not None:
            yield fused.matrices(stored.read_rows(expert, expert + 1))[0].float().contiguous()
        else:
            raise BoneError(
                f"Transformers computes {module} out of other tensors when it loads {base.name}: save the base again "
                "with save_pretrained(), and take that."
            )
