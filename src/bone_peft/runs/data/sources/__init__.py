"""Where rows come from, one file for each kind. They are read at import, so a kind is added by adding its file."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

from .. import hub


class Source(Protocol):
    """A kind of source; a module with these two functions is one.

    If it is of files, ``SUFFIXES`` are the ends of their names.
    """

    def accepts(self, source: str) -> bool:
        """True when ``source`` is of this kind, and of no other."""

    def read(self, source: str) -> Any:
        """Return a :class:`datasets.Dataset` with the source's own columns, or raise ``BoneError``."""


SOURCES: list[Source] = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]

SUFFIXES: tuple[str, ...] = tuple(suffix for kind in SOURCES for suffix in getattr(kind, "SUFFIXES", ()))
"""Of the files that hold rows."""


def read(source: str) -> Any:
    """Read ``source`` with the kind that accepts it; what none accepts is for ``datasets`` to find."""
    kind = next((kind for kind in SOURCES if kind.accepts(source)), None)
    return hub.read(source) if kind is None else kind.read(source)
