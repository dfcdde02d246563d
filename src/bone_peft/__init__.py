"""Bone: block-affine fine-tuning of language models. Importing it makes Bone a PEFT method.

That is done at once if PEFT is imported already, else as soon as it is. Every name is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import bone_peft_hook

if TYPE_CHECKING:
    from bone_peft.errors import BoneError
    from bone_peft.files.bases import load_base
    from bone_peft.files.conversion import convert
    from bone_peft.files.inspection import inspect_adapter
    from bone_peft.files.merging import merge
    from bone_peft.method import BoneConfig, BoneLayer, BoneLinear, BoneModel, check
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
    "register",
    "train",
]
__version__ = "0.1.0"

_ON_DEMAND = {
    "BoneConfig": "bone_peft.method",
    "BoneError": "bone_peft.errors",
    "BoneLayer": "bone_peft.method",
    "BoneLinear": "bone_peft.method",
    "BoneModel": "bone_peft.method",
    "Recipe": "bone_peft.runs.training",
    "check": "bone_peft.method",
    "convert": "bone_peft.files.conversion",
    "inspect_adapter": "bone_peft.files.inspection",
    "load_base": "bone_peft.files.bases",
    "merge": "bone_peft.files.merging",
    "train": "bone_peft.runs.training",
}


def register() -> None:
    """Import PEFT and make Bone one of its methods. Doing it twice is harmless.

    ``import bone_peft`` has this done: at once if PEFT is imported already, else as soon as it is.
    """
    from bone_peft.method.tuner.register import register

    register()
    import_module("bone_peft.rwkv")  # It says what to adapt in RWKV.


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ON_DEMAND[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})


bone_peft_hook.install()
