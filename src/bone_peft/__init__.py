"""Bone: block-affine fine-tuning of language models. Importing it makes Bone a PEFT method.

What needs more than PEFT is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import bone_peft.rwkv  # noqa: F401  (PEFT learns what to adapt in RWKV)
from bone_peft.errors import BoneError
from bone_peft.method import BoneConfig, BoneLayer, BoneLinear, BoneModel, check, register

if TYPE_CHECKING:
    from bone_peft.files.bases import load_base
    from bone_peft.files.conversion import convert
    from bone_peft.files.inspection import inspect_adapter
    from bone_peft.files.merging import merge
    from bone_peft.runs.training import Recipe, train

__all__ = [
    "BoneConfig",
    "BoneError",
    "BoneLayer",
    "BoneLinear",
    "BoneModel",
    "Recipe",
    "check",
    "convert",
    "inspect_adapter",
    "load_base",
    "merge",
    "train",
]
__version__ = "0.1.0"

_ON_DEMAND = {
    "Recipe": "bone_peft.runs.training",
    "convert": "bone_peft.files.conversion",
    "inspect_adapter": "bone_peft.files.inspection",
    "load_base": "bone_peft.files.bases",
    "merge": "bone_peft.files.merging",
    "train": "bone_peft.runs.training",
}

register()


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ON_DEMAND[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
