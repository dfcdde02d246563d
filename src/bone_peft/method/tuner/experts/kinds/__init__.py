"""The kinds of modules that hold experts. One file each, with three functions:

``takes(module)`` says whether a module is of the kind, ``projections(module)`` gives its parameters as layers by name,
in the order in which they are applied, and ``run(module, *args)`` is its forward, once they are layers.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from torch import nn

KINDS: tuple[Any, ...] = tuple(import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__))


def kind_of(module: nn.Module) -> Any:
    """The kind of a module, or ``None`` if it holds no experts, or in a way that is not known."""
    return next((kind for kind in KINDS if kind.takes(module)), None)
