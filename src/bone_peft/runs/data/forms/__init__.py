"""What the columns of a table may mean, one file for each form. A form is added by adding its file."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

from . import columns, pairs
from .reading import Reading


class Form(Protocol):
    """A form of rows; a module with this name and these two functions is one."""

    WHAT: str
    """Such rows, in words."""

    def recognizes(self, names: Collection[str]) -> bool:
        """Whether a table with columns of these names is of this form, and of no other."""

    def rows(self, dataset: Any, reading: Reading) -> Any:
        """The table with the columns ``prompt`` and ``completion`` (and ``tools``), or a ``BoneError``.

        Of pairs, ``chosen`` and ``rejected`` stand in place of ``completion``.
        """


FORMS: list[Form] = [
    module
    for found in iter_modules(__path__)
    if hasattr(module := import_module(f"{__name__}.{found.name}"), "recognizes")
]


def rows_of(dataset: Any, reading: Reading) -> Any:
    """The rows by the form that recognizes them; by two columns where none does, or where those are named."""
    return form_of(dataset.column_names, reading.fields, reading.pairs).rows(dataset, reading)


def form_of(names: Collection[str], fields: Any, wants_pairs: bool = False) -> Any:
    """The form of a table with columns of these ``names``, where ``fields`` are not named as prompt and completion."""
    if wants_pairs:
        return pairs
    recognized = None if fields else next((form for form in FORMS if form.recognizes(names)), None)
    return columns if recognized is None else recognized
