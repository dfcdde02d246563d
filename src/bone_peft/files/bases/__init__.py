"""Base models by name: a folder, a hub name, a GGUF file, ``package:NAME``."""

from .chat_template import check_chat_template
from .given_template import set_template, take_template
from .load_adapter import load_adapter
from .load_base import ONE_ANSWER, load_base, load_tokenizer

__all__ = [
    "ONE_ANSWER",
    "check_chat_template",
    "load_adapter",
    "load_base",
    "load_tokenizer",
    "set_template",
    "take_template",
]
