"""Training and evaluation rows: named sources in, TRL's ``prompt`` and ``completion`` columns out."""

from .held_out import split, without
from .load_data import document_start, is_chat, load_data, look
from .named_files import sources_in, written

__all__ = ["document_start", "is_chat", "load_data", "look", "sources_in", "split", "without", "written"]
