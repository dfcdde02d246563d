"""A model by its name, known here, in a folder, in a file or on the hub: its config, and its shapes."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bone_peft.errors import BoneError
from bone_peft.files import gguf_path
from bone_peft.files.bases import from_pth
from bone_peft.files.checkpoints.gguf_file import GgufCheckpoint
from bone_peft.files.checkpoints.outline import load_config, outline, own_config
from bone_peft.files.remote_code import needed
from bone_peft.io.json_file import read_json

KNOWN: dict[str, dict[str, Any]] = json.loads(files(__package__).joinpath("known.json").read_text())
"""Sizes of well-known models, so that an estimate needs no network."""


def empty(model: str, dtype: torch.dtype, task_type: str | None = None, trust_remote_code: bool = False) -> nn.Module:
    """The model without its weights, on the meta device.

    Args:
        model: as for :func:`config_of`, or RWKV's ``.pth`` file.
        dtype: of its parameters.
        task_type: PEFT's word for what it is loaded for; None goes by its config.
        trust_remote_code: run the Python code that the model brings along, if it has some.

    Raises:
        BoneError: no such model, or it cannot be built.
    """
    if from_pth.accepts(model):
        return from_pth.empty(model, dtype)
    config = config_of(model, trust_remote_code)
    config.dtype = dtype
    task = task_type or (None if config.architectures else "CAUSAL_LM")
    return outline(config, task, where=model, trust_remote_code=trust_remote_code)


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
