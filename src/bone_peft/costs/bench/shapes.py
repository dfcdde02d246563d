"""Model shapes by name. Weights are random: speed does not depend on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from bone_peft.errors import BoneError
from bone_peft.files.checkpoints.outline import load_config
from bone_peft.io.json_file import read_json


def _sizes(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any) -> Any:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        **more,
    }


def _mixture(experts: int, each: int, width: int) -> Any:
    """Each token goes to ``each`` of ``experts``, whose inner size is ``width``."""
    return {"num_experts": experts, "num_experts_per_tok": each, "moe_intermediate_size": width}


SHAPES: dict[str, tuple[type[PretrainedConfig], Any]] = {
    "llama2-7b": (LlamaConfig, _sizes(4096, 11008, 32, 32, 32, 32000)),
    "llama3.2-3b": (LlamaConfig, _sizes(3072, 8192, 28, 24, 8, 128256, head_dim=128, tie_word_embeddings=True)),
    "smollm2": (LlamaConfig, _sizes(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True)),
    "qwen3-30b-a3b": (Qwen3MoeConfig, _sizes(2048, 6144, 48, 32, 4, 151936, head_dim=128, **_mixture(128, 8, 768))),
    "llama-48b": (LlamaConfig, _sizes(8192, 22016, 69, 64, 8, 32000)),
    "llama-20b": (LlamaConfig, _sizes(6144, 16384, 51, 48, 8, 32000)),
    "tiny": (LlamaConfig, _sizes(64, 128, 2, 2, 2, 256)),
    "tiny-experts": (Qwen3MoeConfig, _sizes(64, 128, 2, 2, 2, 256, head_dim=32, **_mixture(4, 2, 32))),
}


def config_of(shape: str) -> PretrainedConfig:
    """The configuration for a name in :data:`SHAPES`, or that of a model folder.

    Raises:
        BoneError: if it is neither.
    """
    if shape in SHAPES:
        kind, sizes = SHAPES[shape]
        return kind(**sizes)
    path = Path(shape) / "config.json"
    config = load_config(read_json(path), path, "CAUSAL_LM") if path.is_file() else None
    if config is not None:
        return config
    raise BoneError(f"{shape} is neither a known shape ({', '.join(SHAPES)}) nor a folder with a config.json.")


def random_model(shape: str, layers: int | None, dtype: torch.dtype, device: str) -> nn.Module:
    """A frozen causal language model of that shape with random weights.

    Args:
        shape: as in :func:`config_of`.
        layers: how many decoder layers it has, ``None`` for as many as the shape says.
        dtype, device: of its weights.
    """
    config = config_of(shape)
    if layers is not None:
        config.num_hidden_layers = layers
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    return model.requires_grad_(False)
