"""Base models by name: a folder, a hub name, a GGUF file, ``package:NAME``."""

from .load_adapter import load_adapter
from .load_base import load_base

__all__ = ["load_adapter", "load_base"]
