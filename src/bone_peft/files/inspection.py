"""``inspect_adapter``: what a file or folder is, and whether it is well."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from .adapters import Adapter, read_adapter


@dataclass(frozen=True)
class Module:
    """One adapted module, or one parameter that was trained whole.

    Attributes:
        name: of the module, or of the parameter.
        r: block size or width; ``None`` for whole parameters.
        shapes: of its tensors, by name.
        norm: Frobenius norm over its tensors; NaN if there is any.
        nans: elements that are NaN or infinite.
    """

    name: str
    r: int | None
    shapes: dict[str, list[int]]
    norm: float
    nans: int


@dataclass(frozen=True)
class Inspection:
    """What an adapter is.

    Attributes:
        format: of the files, in words.
        variant: of Bone; LoRA is shown as the Bottleneck that it is.
        r: how many modules have which size.
        targets: last parts of the names of the adapted modules.
        base: the model it was trained on, if it says so.
        parameters: elements of all tensors.
        bytes: of all tensors.
        dtypes: of the tensors.
        nans: elements that are NaN or infinite.
        untrained: whether every ``dW`` is zero.
        modules: one by one.
        whole: parameters trained whole.
    """

    path: str
    format: str
    variant: str
    r: dict[int, int]
    targets: list[str]
    base: str | None
    parameters: int
    bytes: int
    dtypes: list[str]
    nans: int
    untrained: bool
    modules: list[Module]
    whole: list[Module]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``json.dumps``; NaN and infinity become ``None``, which JSON has."""
        found = asdict(self)
        for module in (*found["modules"], *found["whole"]):
            module["norm"] = module["norm"] if isfinite(module["norm"]) else None
        return found


def inspect_adapter(path: str | Path) -> Inspection:
    """Look at an adapter of any format.

    Raises:
        BoneError: nothing there that is an adapter, or an unsound file. NaN is reported, not refused.
    """
    adapter, format = read_adapter(path)
    tensors = adapter.tensors()
    modules = [_module(name, params, adapter.r(name)) for name, params in adapter.layers.items()]
    whole = [_module(name, {"": tensor}, None) for name, tensor in adapter.whole.items()]
    return Inspection(
        path=str(path),
        format=format.title,
        variant=_variant(adapter),
        r=dict(Counter(module.r or 0 for module in modules)),
        targets=sorted({name.rpartition(".")[2] for name in adapter.layers}),
        base=adapter.config.base_model_name_or_path or None,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        dtypes=sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        nans=sum(module.nans for module in (*modules, *whole)),
        untrained=adapter.is_untrained(),
        modules=modules,
        whole=whole,
    )


def _variant(adapter: Adapter) -> str:
    return adapter.variant.name if adapter.mini_r is None else f"bone (MiSS mini, mini_r={adapter.mini_r})"


def _module(name: str, params: Any, r: int | None) -> Module:
    flat = [tensor.double() for tensor in params.values()]
    return Module(
        name=name,
        r=r,
        shapes={key: list(tensor.shape) for key, tensor in params.items()},
        norm=float(torch.stack([tensor.square().sum() for tensor in flat]).sum().sqrt()),
        nans=sum(int((~torch.isfinite(tensor)).sum()) for tensor in flat),
    )
