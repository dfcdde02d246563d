"""RWKV-7's and RWKV-6's ``.pth`` files: into a model, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.io.stored import StoredTensor
from bone_peft.io.torch_file import read_torch
from bone_peft.io.whole import whole_file

from .pth_names import hf_layout, hf_name, pth_layout, pth_name

# The first layer has no value residual, and yet its file holds the tensors of one.
_UNUSED = re.compile(r"blocks\.0\.att\.v[012]")


def load_model(path: str | Path, *, dtype: torch.dtype | str = "auto", **kwargs: Any) -> Any:
    """An x070 or x060 checkpoint as a Hugging Face model.

    Args:
        path: the ``.pth`` file.
        dtype: of the weights; ``"auto"`` is that of the file.
        kwargs: for ``from_pretrained``, such as ``quantization_config`` and ``device_map``.

    Returns:
        :class:`~bone_peft.rwkv.causal_lm.RwkvForCausalLM`, or
        :class:`~bone_peft.rwkv.x060.Rwkv6ForCausalLM`, in eval mode.

    Raises:
        BoneError: not a sound file, or neither of the two.
    """
    stored, name, empty = _opened(path)
    if dtype == "auto":
        dtype = stored["emb.weight"].dtype or torch.float32
    state = {
        hf_name(key): hf_layout(key, tensor.read()).contiguous()
        for key, tensor in stored.items()
        if not _UNUSED.fullmatch(key)
    }
    expected = {key: tuple(tensor.shape) for key, tensor in empty.state_dict().items()}
    _check(path, name, {key: tuple(tensor.shape) for key, tensor in state.items()}, expected)
    model = type(empty).from_pretrained(None, config=empty.config, state_dict=state, dtype=dtype, **kwargs)
    model.name_or_path = model.config._name_or_path = str(path)
    return model


def empty_model(path: str | Path, dtype: torch.dtype) -> Any:
    """The model that :func:`load_model` gives, on the meta device: of the file, shapes alone are read.

    Raises:
        BoneError: not a sound file, or neither of the two.
    """
    return _opened(path)[2].to(dtype).eval()


def _opened(path: str | Path) -> tuple[Mapping[str, StoredTensor], str, Any]:
    """The tensors of a file, the name of what it is, and such a model on the meta device."""
    stored = read_torch(path).tensors
    version = version_of(stored)
    if version not in _KINDS:
        raise BoneError(
            f"{path} is {version}, and training takes RWKV-7 (x070) and RWKV-6 (x060); its adapters can be merged and "
            "converted."
        )
    name, kind = _KINDS[version]
    try:
        model_class, config = kind(stored)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise BoneError(f"{path} is no whole {name} checkpoint: {error.args[0]}.") from None
    with torch.device("meta"):
        return stored, name, model_class(config)


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


def _x070(stored: Mapping[str, Any]) -> tuple[Any, Any]:
    from rwkv7_hf.converter import infer_config

    from .causal_lm import RwkvForCausalLM

    return RwkvForCausalLM, infer_config(stored, dtype_name="auto", attn_mode="reference", fuse_norm=False)


def _x060(stored: Mapping[str, Any]) -> tuple[Any, Any]:
    from .x060 import MOVED, Rwkv6Config, Rwkv6ForCausalLM

    blocks = {int(match[1]) for name in stored if (match := re.match(r"blocks\.(\d+)\.", name))}
    vocab_size, width = stored["emb.weight"].shape
    heads, head_dim = stored["blocks.0.att.time_faaaa"].shape
    config = Rwkv6Config(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=max(blocks) + 1,
        num_heads=heads,
        head_dim=head_dim,
        attention_hidden_size=stored["blocks.0.att.receptance.weight"].shape[0],
        intermediate_size=stored["blocks.0.ffn.key.weight"].shape[0],
        mix_low_rank_dim=stored["blocks.0.att.time_maa_w1"].shape[1] // len(MOVED),
        decay_low_rank_dim=stored["blocks.0.att.time_decay_w1"].shape[1],
    )
    return Rwkv6ForCausalLM, config


_KINDS: dict[str, tuple[str, Callable[[Mapping[str, Any]], tuple[Any, Any]]]] = {
    "x070": ("RWKV-7", _x070),
    "x060": ("RWKV-6", _x060),
}
"""What trains, by RWKV's word for it: its name, and what makes a class and a config of its tensors."""


def _check(path: str | Path, kind: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in sorted(set(found) ^ set(expected)):
        state = "lacks" if name in expected else "has an unknown"
        raise BoneError(f"{path} is no whole {kind} checkpoint: it {state} {pth_name(name)}.")
    for name, shape in expected.items():
        if found[name] != shape:
            raise BoneError(
                f"{path} holds {pth_name(name)} in the shape {found[name]}, and {kind} has it in {shape}: it is "
                "damaged, or of another RWKV."
            )
