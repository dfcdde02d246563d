"""Transformers' tensor parallel. Since 5.17 a weight says which part of it a process has; before, nothing tells."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from bone_peft.errors import BoneError


def parts_of(model: Any) -> int:
    """How many processes have split ``model`` among them."""
    return getattr(model, "_tp_size", None) or 1


def check_known() -> None:
    """Raise ``BoneError`` if the Transformers that is installed does not tell how it splits."""
    try:
        known = find_spec("transformers.distributed.tensor_parallel") is not None
    except ModuleNotFoundError:
        known = False
    if not known:
        raise BoneError("Adapters on a model that is split by tensor parallel need Transformers 5.17 or newer.")
