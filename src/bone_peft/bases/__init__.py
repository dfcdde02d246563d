"""Base models by name: a folder, a hub name, a GGUF file, ``package:NAME``."""

from bone_peft.bases.adapter import load_adapter
from bone_peft.bases.base import load_base

__all__ = ["load_adapter", "load_base"]
