"""By which names of ``target_modules`` the projections of experts are meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_OTHER_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
"""Of Mixtral's family, while experts were modules."""


def named_by_part(key: str, parts: Sequence[str], is_named: Callable[[str], Any]) -> list[str]:
    """The parts of a projection whose own names, in a model of separate experts, are named.

    Args:
        key: of the projection, ``...experts.gate_up_proj``.
        parts: ``gate_proj`` and ``up_proj``.
        is_named: whether a module of that name is a target.
    """
    container = key.rpartition(".")[0]
    return [
        part
        for part in parts
        if any(
            is_named(f"{place}.{name}")
            for place in (container, f"{container}.0")
            for name in (part, _OTHER_NAMES.get(part, part))
        )
    ]


def is_parameter(key: str, target_parameters: Sequence[str]) -> bool:
    """Whether one of these names means the parameter ``key``: its whole name, or the end of it."""
    return any(key == name or key.endswith(f".{name}") for name in target_parameters)
