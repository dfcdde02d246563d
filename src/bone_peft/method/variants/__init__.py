"""The variants of Bone: the maths, and nothing else. One file each.

The files of this folder are read at import, so a variant is added by adding its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from .additive import Additive
from .by_expert import delta_weight_of_expert, experts_of, of_expert, of_part, parts_of
from .variant import Below, BelowExperts, Dropout, Params, Variant

__all__ = [
    "VARIANTS",
    "Additive",
    "Below",
    "BelowExperts",
    "Dropout",
    "Params",
    "Variant",
    "delta_weight_of_expert",
    "experts_of",
    "of_expert",
    "of_part",
    "parameter_names",
    "parts_of",
    "variant_of",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def _concrete(cls: type[Any]) -> Iterator[type[Variant]]:
    for child in cls.__subclasses__():
        if "name" in vars(child):
            yield child
        yield from _concrete(child)


VARIANTS: dict[str, type[Variant]] = dict(sorted((variant.name, variant) for variant in _concrete(Variant)))
"""Every variant, by name."""


def variant_of(config: Any) -> type[Variant]:
    """The variant that the fields of a ``BoneConfig`` ask for.

    Raises:
        LookupError: if no variant, or more than one, answers to this combination of fields.
    """
    found = [variant for variant in VARIANTS.values() if variant.selected_by(config)]
    if len(found) != 1:
        raise LookupError(f"{len(found)} variants answer to this configuration")
    return found[0]


def parameter_names() -> tuple[str, ...]:
    """The names of all tensors that some variant trains, sorted."""
    return tuple(sorted({name for variant in VARIANTS.values() for name in variant.parameters}))
