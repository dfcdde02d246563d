"""Training and evaluation rows: a named source in, TRL's ``prompt`` and ``completion`` columns out."""

from .held_out import without
from .load_data import load_data

__all__ = ["load_data", "without"]
