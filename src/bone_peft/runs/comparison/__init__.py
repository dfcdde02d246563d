"""Which method learns a task best, at equal parameter counts: methods x learning rates x seeds on one base."""

from .compare import compare
from .study import Study
from .summary import Line, summary

__all__ = ["Line", "Study", "compare", "summary"]
