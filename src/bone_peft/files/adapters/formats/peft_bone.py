"""Bone, as PEFT 0.14 to 0.18 saved it and as this package saves it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bone_peft.errors import BoneError
from bone_peft.method.tuner.config import CONFIG_FIELDS
from bone_peft.method.tuner.model_card import tell_how_to_load
from bone_peft.method.variants import parameter_names

from .. import peft_folder
from ..adapter import Adapter
from ..format import Format


def read(path: Path) -> Adapter:
    config, tensors = peft_folder.read_folder(path)
    own = {name: config[name] for name in CONFIG_FIELDS & set(config) - {"peft_type", *peft_folder.COMMON}}
    own.pop("peft_version", None)
    own.pop("auto_mapping", None)
    layers, whole = peft_folder.split(tensors, {name: name for name in parameter_names()})
    return peft_folder.checked(Adapter(peft_folder.bone_config(config, path, **own), layers, whole), path)


def write(adapter: Adapter, path: Path) -> None:
    if adapter.mini_r is not None:
        raise BoneError("MiSS 'mini' has to be written out first: name the base with --base.")
    named = [(f"{module}.{name}", t) for module, params in adapter.layers.items() for name, t in params.items()]
    peft_folder.write_folder(path, adapter.config, named, adapter.whole)
    tell_how_to_load(path)


FORMAT = Format("bone", "PEFT Bone folder", partial(peft_folder.recognizes, peft_type="BONE"), read, write)
