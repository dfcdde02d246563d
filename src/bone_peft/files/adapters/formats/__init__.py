"""The formats of adapter files, one file each. They are read at import, so a format is added by adding its file."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ..format import Format

_all: list[Format] = [import_module(f"{__name__}.{module.name}").FORMAT for module in iter_modules(__path__)]

FORMATS: dict[str, Format] = {format.name: format for format in _all}
"""Every format, by the name that ``bone convert --to`` takes."""
