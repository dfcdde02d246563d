"""PEFT 0.18 has a Bone of its own: ours takes its place."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import fields
from functools import wraps
from typing import Any

from bone_peft.errors import BoneError

from .undoing import set_attribute


def take_place(undo: ExitStack, config_cls: Any, model_cls: Any) -> None:
    """Put our classes where PEFT has its own, and have its own model, imported before, be ours when it is made.

    PEFT >= 0.19 has none, and then nothing happens.
    """
    own = sys.modules.get("peft.tuners.bone")
    if own is None:
        return
    replacements = {id(own.BoneConfig): config_cls, id(own.BoneModel): model_cls}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "peft" and not module_name.startswith("peft.tuners.bone"):
            for name, value in list(vars(module).items()):
                if id(value) in replacements:
                    set_attribute(undo, module, name, replacements[id(value)])

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__class__ = model_cls
        self.__init__(*args, **kwargs)

    inject = own.BoneModel.inject_adapter

    @wraps(inject)
    def inject_adapter(self: Any, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if isinstance(self.peft_config[adapter_name], config_cls):
            del self.peft_config[adapter_name]
            raise BoneError(
                "This model got its Bone from PEFT itself, before bone_peft was imported, and takes no other: import "
                "bone_peft before get_peft_model() is called."
            )
        inject(self, model, adapter_name, *args, **kwargs)

    set_attribute(undo, own.BoneModel, "__init__", init)
    set_attribute(undo, own.BoneModel, "inject_adapter", inject_adapter)


def converted(config: Any, config_cls: Any) -> Any:
    """A config of PEFT's own Bone as one of ours; others as they are."""
    if type(config).__module__ != "peft.tuners.bone.config":
        return config
    names = {field.name for field in fields(config_cls) if field.init}
    return config_cls(**{name: value for name, value in vars(config).items() if name in names})
