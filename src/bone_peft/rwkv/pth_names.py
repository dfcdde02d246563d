"""Names and layouts: in RWKV's ``.pth`` files, and in Hugging Face models of RWKV.

The two say the same of the same tensors; a low-rank pair is stored transposed, and a vector as ``(1, 1, C)``. Names of
neither kind pass through as they are.
"""

from __future__ import annotations

import re

from torch import Tensor

_TOP = {"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"}
_PARTS = {"att": "attn", "ffn": "ffn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
_ATTENTION = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
_LOW_RANK = {"0": "lora.2.bias", "1": "lora.0.weight", "2": "lora.2.weight"}
_VECTORS = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "r_k")

_STACKED = ".att.time_maa_w2"
"""RWKV-6's five low-rank factors. They are stacked in its files, and below one another in the model."""

TARGETS = ("r_proj", "k_proj", "v_proj", "o_proj", "key", "value")
"""The linear layers of a block of RWKV-7: those that RWKV-PEFT adapts."""

TARGETS_X060 = (*TARGETS, "gate", "receptance")
"""Those of RWKV-6, likewise."""


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {value: key for key, value in names.items()}


_TOP_BACK, _PARTS_BACK, _ATTENTION_BACK, _LOW_RANK_BACK = map(_inverse, (_TOP, _PARTS, _ATTENTION, _LOW_RANK))


def hf_name(name: str) -> str:
    """``blocks.0.att.key`` to ``model.layers.0.attn.k_proj``; of modules and of parameters."""
    block = re.fullmatch(r"blocks\.(\d+)\.(\w+)(?:\.(.+))?", name)
    if block is None:
        top, dot, rest = name.partition(".")
        return f"{_TOP[top]}{dot}{rest}" if top in _TOP else name
    layer, part, rest = block.groups()
    if rest is not None:
        rest = f".{_hf_inner(part, rest)}"
    return f"model.layers.{layer}.{_PARTS.get(part, part)}{rest or ''}"


def pth_name(name: str) -> str:
    """The way back."""
    block = re.fullmatch(r"model\.layers\.(\d+)\.(\w+)(?:\.(.+))?", name)
    if block is None:
        top = next((top for top in _TOP_BACK if name == top or name.startswith(f"{top}.")), None)
        return name if top is None else _TOP_BACK[top] + name[len(top) :]
    layer, part, rest = block.groups()
    part = _PARTS_BACK.get(part, part)
    if rest is not None:
        rest = f".{_pth_inner(part, rest)}"
    return f"blocks.{layer}.{part}{rest or ''}"


def _hf_inner(part: str, name: str) -> str:
    if part not in ("att", "ffn"):
        return name
    if name in _VECTORS or name.startswith("time_"):
        return f"mix.{name}"
    low_rank = re.fullmatch(r"([wvag])([012])", name)
    if low_rank is not None:
        return f"{low_rank[1]}_lora.{_LOW_RANK[low_rank[2]]}"
    first, dot, rest = name.partition(".")
    return f"{_ATTENTION.get(first, first) if part == 'att' else first}{dot}{rest}"


def _pth_inner(part: str, name: str) -> str:
    if name.startswith("mix."):
        return name.removeprefix("mix.")
    low_rank = re.fullmatch(r"([wvag])_lora\.(.+)", name)
    if low_rank is not None:
        return f"{low_rank[1]}{_LOW_RANK_BACK[low_rank[2]]}" if low_rank[2] in _LOW_RANK_BACK else name
    first, dot, rest = name.partition(".")
    return f"{_ATTENTION_BACK.get(first, first) if part == 'att' else first}{dot}{rest}"


def hf_layout(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a ``.pth`` file as Hugging Face models hold it. ``name`` is the one in the file."""
    if _is_transposed(name):
        return tensor.t()
    if name.endswith(_STACKED):
        return tensor.flatten(0, 1)
    if _is_vector(name):
        return tensor.reshape(1, 1, -1) if re.search(r"\.att\.x_.$", name) else tensor.reshape(-1)
    return tensor


def pth_layout(name: str, tensor: Tensor) -> Tensor:
    """The way back; ``name`` is the one in the file."""
    if _is_transposed(name):
        return tensor.t()
    if name.endswith(_STACKED):
        return tensor.unflatten(0, (5, -1))
    return tensor.reshape(1, 1, -1) if _is_vector(name) else tensor


def _is_transposed(name: str) -> bool:
    return re.search(r"\.att\.[wvag][12]$", name) is not None


def _is_vector(name: str) -> bool:
    return re.search(r"\.(att|ffn)\.([wva]0|x_.|k_[ka])$", name) is not None
