"""What a run learns from its rows, one file for each way. A method is added by adding its file."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from bone_peft.errors import BoneError

from .training_method import TrainingMethod

METHODS: dict[str, TrainingMethod] = {
    module.METHOD.name: module.METHOD
    for found in iter_modules(__path__)
    if hasattr(module := import_module(f"{__name__}.{found.name}"), "METHOD")
}
"""By name."""


def training_method(name: str) -> TrainingMethod:
    """The method of that name.

    Raises:
        BoneError: there is none.
    """
    if name not in METHODS:
        raise BoneError(f"There is no method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]
