"""Training and evaluation rows: a named source in, TRL's ``prompt`` and ``completion`` columns out."""

from bone_peft.data.held_out import without
from bone_peft.data.load import load_data

__all__ = ["load_data", "without"]
