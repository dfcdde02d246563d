"""Batches whose rows have adapters of their own: PEFT's ``adapter_names``. Tensors in, tensors out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bone_peft.errors import BoneError

from ..ops.dispatch import computing_dtype
from ..variants import Additive, Params

BASE = "__base__"
"""In ``adapter_names``, PEFT's word for 'no adapter'."""

Adapters = Mapping[str, tuple[type[Additive], Params]]
"""By name: the variant and its tensors."""

FEW = 4
"""Rows up to which an adapter is computed with others: in a batched product each row has a copy of the tensors."""


def check_rows(rows: int, row_adapters: Sequence[str]) -> None:
    """Raise ``BoneError`` if there is not one name for each row."""
    if rows != len(row_adapters):
        raise BoneError(
            f"Length of `adapter_names` should be the same as the number of inputs, but got {len(row_adapters)} and "
            f"{rows} respectively: name one adapter for each row."
        )


def in_turns(x: Tensor, row_adapters: Sequence[str], run: Callable[[str, Tensor], Tensor]) -> Tensor:
    """``run(name, rows of x)`` for each name, and the results in the order of the rows.

    Args:
        x: ``(batch, ..., in)``.
        row_adapters: a name for each row.
        run: takes ``(n, ..., in)`` and gives ``(n, ..., out)``.

    Returns:
        ``(batch, ..., out)``.
    """
    places = {name: _index(_rows(row_adapters, [name]), x.device) for name in dict.fromkeys(row_adapters)}
    parts = [run(name, x[here]) for name, here in places.items()]
    return torch.cat(parts)[torch.argsort(torch.cat(list(places.values())))]


def chosen(own: Tensor, row_adapters: Sequence[str], run: Callable[[str], Tensor]) -> Tensor:
    """``run(name)`` for each name, and from each result what is its own.

    Args:
        own: ``(n,)``, the row of the batch that each place of a result is of.
        row_adapters: a name for each row.
        run: gives ``(n, out)``.

    Returns:
        ``(n, out)``.
    """
    names = list(dict.fromkeys(row_adapters))
    y = run(names[0])
    for name in names[1:]:
        here = torch.tensor([other == name for other in row_adapters], device=own.device)[own]
        y = torch.where(here[:, None], run(name), y)
    return y


def add(y: Tensor, x: Tensor, row_adapters: Sequence[str], adapters: Adapters) -> Tensor:
    """``y`` plus what each row's adapter adds.

    Args:
        y: ``(batch, ..., out)``, the frozen layer's output.
        x: ``(batch, ..., in)``, its input.
        row_adapters: a name for each row; ``y`` stays as it is where ``adapters`` has none of that name.
        adapters: what the names stand for.

    Returns:
        ``(batch, ..., out)`` in the dtype of ``y``.
    """
    left = dict(adapters)
    for kind in dict.fromkeys(adapters[name][0] for name in row_adapters if name in adapters):
        own = {name: params for name, (variant, params) in adapters.items() if variant is kind}
        added = kind.added_by_row(y, x, [own.get(name) for name in row_adapters])
        if added is not None:
            y = added
            left = {name: adapter for name, adapter in left.items() if name not in own}
    for group in _groups(row_adapters, left):
        rows = _rows(row_adapters, group)
        if len(rows) == len(x):
            return y + _addition(x, row_adapters, left).to(y.dtype)
        here = _index(rows, x.device)
        y = y.index_add(0, here, _addition(x[here], [row_adapters[i] for i in rows], left).to(y.dtype))
    return y


def _groups(row_adapters: Sequence[str], adapters: Adapters) -> list[list[str]]:
    """Together what one batched product computes: adapters of few rows, one variant and the same shapes."""
    groups: dict[Any, list[str]] = {}
    for name, rows in Counter(row_adapters).items():
        if name in adapters:
            variant, params = adapters[name]
            key = (variant, *(tensor.shape for tensor in params.values())) if rows <= FEW else name
            groups.setdefault(key, []).append(name)
    return list(groups.values())


def _addition(x: Tensor, row_adapters: Sequence[str], adapters: Adapters) -> Tensor:
    """What the adapters of one group add, each for its row of ``x``."""
    dtype = computing_dtype(x)
    variant, _ = adapters[row_adapters[0]]
    used = {name: adapters[name][1] for name in dict.fromkeys(row_adapters)}
    known = {name: {key: tensor.to(dtype) for key, tensor in params.items()} for name, params in used.items()}
    if len(known) == 1:
        return variant.addition(x.to(dtype), known[row_adapters[0]])
    params = {key: torch.stack([known[name][key] for name in row_adapters]) for key in variant.parameters}
    added = variant.addition(x.reshape(len(x), -1, x.shape[-1]).to(dtype), params)
    return added.view(*x.shape[:-1], added.shape[-1])


def _rows(row_adapters: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    return tuple(i for i, name in enumerate(row_adapters) if name in names)


@lru_cache(maxsize=256)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """``rows`` as a tensor. The same for all layers and tokens, and the way to a GPU is long."""
    with torch.inference_mode(False):  # What is made there could not be used elsewhere later.
        return torch.tensor(rows, dtype=torch.long, device=device)
