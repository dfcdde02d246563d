"""The config of a model by name: known here, in a folder, or on the hub."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.files import gguf_path
from bone_peft.files.checkpoints.gguf_file import GgufCheckpoint
from bone_peft.files.checkpoints.outline import load_config, own_config
from bone_peft.files.remote_code import needed
from bone_peft.io.json_file import read_json

KNOWN: dict[str, dict[str, Any]] = json.loads(files(__package__).joinpath("known.json").read_text())
"""Sizes of well-known models, so that an estimate needs no network."""


def config_of(model: str, trust_remote_code: bool = False) -> Any:
    """The Transformers config of a model.

    Args:
        model: a name in ``KNOWN`` (the part behind the slash will do), a model folder, a hub name, or a GGUF file, as
            for :func:`bone_peft.load_base`.
        trust_remote_code: run the Python code that the model brings along, if it has some.

    Raises:
        BoneError: no such model, or Transformers does not know its kind.
    """
    from transformers import AutoConfig
    from transformers.utils import cached_file

    if gguf_path.accepts(model):
        return GgufCheckpoint(model, "auto").config
    short = {name.rpartition("/")[2].lower(): name for name in KNOWN}
    name = model if model in KNOWN else short.get(model.lower())
    if name is not None:
        return AutoConfig.for_model(**KNOWN[name])
    try:
        path = Path(model) / "config.json" if Path(model).is_dir() else Path(str(cached_file(model, "config.json")))
    except Exception as error:
        raise BoneError(
            f"There is no model {model!r}: give a folder, a hub name, or one of {', '.join(sorted(short))}."
        ) from error
    settings = read_json(path)
    if trust_remote_code and "auto_map" in settings:
        return own_config(model)
    config = load_config(settings, path)
    if config is None and "auto_map" in settings:
        raise needed(model)
    if config is None:
        raise BoneError(f"Transformers does not know the kind of model in {model}.")
    return config
