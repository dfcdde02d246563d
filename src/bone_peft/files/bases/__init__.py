"""Base models by name: a folder, a hub name, a GGUF file, ``package:NAME``."""

from .chat_template import check_chat_template
from .load_adapter import load_adapter
from .load_base import load_base

__all__ = ["check_chat_template", "load_adapter", "load_base"]
