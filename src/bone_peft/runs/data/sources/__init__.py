"""One file per kind of source, and the list of them."""

from typing import Any, Protocol

from . import gym, hub, json_lines, parquet


class Source(Protocol):
    """A kind of source; a module with these two functions is one."""

    def accepts(self, source: str) -> bool:
        """True when ``source`` is of this kind."""

    def read(self, source: str) -> Any:
        """Return a :class:`datasets.Dataset` with the source's own columns, or raise ``BoneError``."""


# The first that accepts wins; `hub` takes every name, so it stays last.
SOURCES: list[Source] = [gym, json_lines, parquet, hub]


def read(source: str) -> Any:
    """Read ``source`` with the first kind that accepts it."""
    return next(kind for kind in SOURCES if kind.accepts(source)).read(source)
