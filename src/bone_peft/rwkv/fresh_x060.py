"""A new RWKV-6, initialised as its authors do it (RWKV-LM, ``RWKV_Tmix_x060`` and ``RWKV_CMix_x060``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .fresh import initialize_ends


@torch.no_grad()
def fresh_model(hidden_size: int = 2048, layers: int = 24, vocab_size: int = 65536, **config: Any) -> Any:
    """An untrained model, float32. The defaults are the architecture of RWKV-6 World 1.6B.

    Args:
        hidden_size: a multiple of 64, the size of a head.
        layers: how many.
        vocab_size: rows of the embedding; RWKV's World vocabulary needs 65536.
        config: for ``Rwkv6Config``, such as ``decay_low_rank_dim``.
    """
    from .x060 import Rwkv6Config, Rwkv6ForCausalLM

    inner = {"intermediate_size": int(hidden_size * 3.5) // 32 * 32, **config}
    model = Rwkv6ForCausalLM(
        Rwkv6Config(
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            vocab_size=vocab_size,
            head_dim=64,
            use_cache=True,
            **inner,
        )
    )
    initialize_ends(model)
    for index, block in enumerate(model.model.layers):
        depth, left = index / max(layers - 1, 1), 1 - index / layers
        _time_mix(block.attn, depth, left)
        _channel_mix(block.ffn, left)
    return model.eval()


def _time_mix(attn: Any, depth: float, left: float) -> None:
    mix = attn.mix
    channel = _ramp(mix.time_maa_x)
    for name in "xwk":
        getattr(mix, f"time_maa_{name}").copy_(1 - channel**left)
    mix.time_maa_v.copy_(1 - channel**left - 0.3 * depth)
    for name in "rg":
        getattr(mix, f"time_maa_{name}").copy_(1 - channel ** (0.5 * left))
    nn.init.zeros_(mix.time_maa_w1)
    nn.init.uniform_(mix.time_maa_w2, -0.01, 0.01)

    inner = mix.time_decay.numel()
    place = torch.arange(inner) / max(inner - 1, 1)
    mix.time_decay.copy_((-6 + 5 * place ** (0.7 + 1.3 * depth)).view_as(mix.time_decay))
    nn.init.zeros_(mix.time_decay_w1)
    nn.init.uniform_(mix.time_decay_w2, -0.01, 0.01)
    waves = 0.1 * ((torch.arange(inner) + 1) % 3 - 1)
    mix.time_faaaa.copy_((depth * (1 - place) + waves).view_as(mix.time_faaaa))

    bound = 0.5 * attn.r_proj.in_features**-0.5
    for layer, scale in ((attn.r_proj, 1), (attn.k_proj, 0.1), (attn.v_proj, 1), (attn.gate, 0.1)):
        nn.init.uniform_(layer.weight, -bound * scale, bound * scale)
    nn.init.zeros_(attn.o_proj.weight)


def _channel_mix(ffn: Any, left: float) -> None:
    for name in "kr":
        vector = getattr(ffn.mix, f"time_maa_{name}")
        vector.copy_(1 - _ramp(vector) ** left)
    bound = 0.5 * ffn.key.in_features**-0.5
    nn.init.uniform_(ffn.key.weight, -bound, bound)
    nn.init.zeros_(ffn.receptance.weight)
    nn.init.zeros_(ffn.value.weight)


def _ramp(vector: Tensor) -> Tensor:
    return (torch.arange(vector.numel()) / vector.numel()).view_as(vector)
