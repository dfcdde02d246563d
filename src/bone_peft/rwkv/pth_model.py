"""RWKV-7 ``.pth`` files: into a model, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.io.torch_file import read_torch
from bone_peft.io.whole import whole_file

from .pth_names import hf_layout, hf_name, pth_layout, pth_name

# The first layer has no value residual, and yet its file holds the tensors of one.
_UNUSED = re.compile(r"blocks\.0\.att\.v[012]")


def load_model(path: str | Path, *, dtype: torch.dtype | str = "auto", **kwargs: Any) -> Any:
    """An x070 checkpoint as a Hugging Face model.

    Args:
        path: the ``.pth`` file.
        dtype: of the weights; ``"auto"`` is that of the file.
        kwargs: for ``from_pretrained``, such as ``quantization_config`` and ``device_map``.

    Returns:
        :class:`~bone_peft.rwkv.causal_lm.RwkvForCausalLM`, in eval mode.

    Raises:
        BoneError: not a sound file, or no RWKV-7.
    """
    from rwkv7_hf.converter import infer_config

    from .causal_lm import RwkvForCausalLM

    stored = read_torch(path).tensors
    version = version_of(stored)
    if version != "x070":
        raise BoneError(
            f"{path} is {version}, and training takes RWKV-7 (x070); its adapters can be merged and converted."
        )
    try:
        config = infer_config(stored, dtype_name="auto", attn_mode="reference", fuse_norm=False)
    except (KeyError, ValueError, IndexError) as error:
        raise BoneError(f"{path} is no whole RWKV-7 checkpoint: {error.args[0]}.") from None
    if dtype == "auto":
        dtype = stored["emb.weight"].dtype or torch.float32
    state = {
        hf_name(name): hf_layout(name, tensor.read()).contiguous()
        for name, tensor in stored.items()
        if not _UNUSED.fullmatch(name)
    }
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in RwkvForCausalLM(config).state_dict().items()}
    _check(path, {name: tuple(tensor.shape) for name, tensor in state.items()}, expected)
    model = RwkvForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=dtype, **kwargs)
    model.name_or_path = model.config._name_or_path = str(path)
    return model


def save_model(model: Any, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model from :func:`load_model` as a ``.pth`` file that RWKV's own programs run.

    Args:
        model: without adapters.
        path: the file; it appears when it is whole.
        dtype: of the tensors; by default as the model has them.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        name = pth_name(key)
        tensors[name] = pth_layout(name, tensor.detach()).to("cpu", dtype or tensor.dtype).contiguous()
    with whole_file(path) as staging, open(staging, "wb") as file:
        torch.save(tensors, file)


def version_of(tensors: Mapping[str, Any]) -> str:
    """RWKV's word for the architecture that these tensors are of, as far as their names tell."""
    marks = {
        "blocks.0.att.r_k": "x070",
        "blocks.0.att.time_maa_x": "x060",
        "blocks.0.att.time_faaaa": "x052",
        "blocks.0.att.time_first": "x040",
    }
    return next((version for mark, version in marks.items() if mark in tensors), "no RWKV that we know")


def _check(path: str | Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in sorted(set(found) ^ set(expected)):
        state = "lacks" if name in expected else "has an unknown"
        raise BoneError(f"{path} is no whole RWKV-7 checkpoint: it {state} {pth_name(name)}.")
    for name, shape in expected.items():
        if found[name] != shape:
            raise BoneError(
                f"{path} holds {pth_name(name)} in the shape {found[name]}, and RWKV-7 has it in {shape}: it is "
                "damaged, or of another RWKV."
            )
