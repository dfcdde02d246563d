"""Changes to other packages that are all made, or none."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import ExitStack
from typing import Any


def set_attribute(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set ``owner.name``; ``undo`` puts back what was there."""
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, value)


def set_entry(undo: ExitStack, table: MutableMapping[Any, Any], key: Any, value: Any) -> None:
    """Set ``table[key]``, likewise."""
    if key in table:
        undo.callback(table.__setitem__, key, table[key])
    else:
        undo.callback(table.pop, key, None)
    table[key] = value
