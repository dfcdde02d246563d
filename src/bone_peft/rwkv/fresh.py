"""A new RWKV-7, initialised as its authors do it (RWKV-LM, ``RWKV_Tmix_x070`` and ``RWKV_CMix_x070``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def fresh_model(hidden_size: int = 768, layers: int = 12, vocab_size: int = 65536, **config: Any) -> Any:
    """An untrained model, float32. The defaults are the architecture of RWKV-7 World 0.1B.

    Args:
        hidden_size: a multiple of 64, the size of a head.
        layers: how many.
        vocab_size: rows of the embedding; RWKV's World vocabulary needs 65536.
        config: for ``RWKV7Config``, such as ``decay_low_rank_dim``.
    """
    from rwkv7_hf import RWKV7Config

    from .causal_lm import RwkvForCausalLM

    model = RwkvForCausalLM(
        RWKV7Config(
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            vocab_size=vocab_size,
            head_dim=64,
            use_cache=True,
            **config,
        )
    )
    initialize_ends(model)
    for index, block in enumerate(model.model.layers):
        _time_mix(block.attn, index, layers)
        _channel_mix(block.ffn, index, layers)
    return model.eval()


def initialize_ends(model: Any) -> None:
    """Embedding and head, which are as in every RWKV."""
    nn.init.uniform_(model.model.embeddings.weight, -1e-4, 1e-4)
    vocab_size, hidden_size = model.lm_head.weight.shape
    nn.init.orthogonal_(model.lm_head.weight, gain=0.5 * max(vocab_size / hidden_size, 1) ** 0.5)


def _time_mix(attn: Any, index: int, layers: int) -> None:
    width = attn.hidden_size
    depth = index / max(layers - 1, 1)
    channel = torch.arange(width) / width
    powers = {"x_r": 0.2, "x_w": 0.9, "x_k": 0.7, "x_v": 0.7, "x_a": 0.9, "x_g": 0.2}
    for name, power in powers.items():
        getattr(attn, name).copy_(1 - channel ** (power * (1 - index / layers)))
    attn.k_k.fill_(0.85)
    attn.k_a.fill_(1)
    attn.r_k.fill_(-0.04)

    for name in ("w_lora", "a_lora", "v_lora", "g_lora"):
        if hasattr(attn, name):
            first, _, second = getattr(attn, name).lora
            nn.init.zeros_(first.weight)
            rank = second.weight.shape[1]
            nn.init.orthogonal_(second.weight, gain=0.1 * max(rank / second.weight.shape[0], 1) ** 0.5)
    speed = (torch.arange(attn.attention_hidden_size) / (attn.attention_hidden_size - 1)) ** (0.85 + depth**0.5)
    attn.w_lora.lora[2].bias.copy_(-6.5 + 5 * speed)
    attn.a_lora.lora[2].bias.zero_()
    if hasattr(attn, "v_lora"):
        attn.v_lora.lora[2].bias.fill_(1)

    bound = 0.5 * width**-0.5
    for layer, scale in ((attn.r_proj, 1), (attn.k_proj, 0.1), (attn.v_proj, 1)):
        nn.init.uniform_(layer.weight, -bound * scale, bound * scale)
    nn.init.zeros_(attn.o_proj.weight)
    attn.g_norm.weight.fill_(((1 + index) / layers) ** 0.7)


def _channel_mix(ffn: Any, index: int, layers: int) -> None:
    width = ffn.key.in_features
    ffn.x_k.copy_(1 - (torch.arange(width) / width) ** ((1 - index / layers) ** 4))
    nn.init.uniform_(ffn.key.weight, -0.5 * width**-0.5, 0.5 * width**-0.5)
    nn.init.zeros_(ffn.value.weight)
