"""``Rwkv6ForCausalLM``: RWKV-6 (x060, arXiv 2404.05892), in the frame of the model of RWKV-7."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from rwkv7_hf import RWKV7Config
from torch import Tensor, nn

from .causal_lm import RwkvForCausalLM
from .kernels_x060 import recurrence
from .token_shift import hides_nothing, token_shift

MOVED = "wkvrg"
"""What the input of is moved towards the token before: decay, key, value, receptance, gate. In the order of a file."""


class Rwkv6Config(RWKV7Config):
    """RWKV-6 in the words of RWKV-7's config.

    Args:
        mix_low_rank_dim, decay_low_rank_dim: widths of what makes mixing and decay depend on the token.
        kwargs: as of ``RWKV7Config``.
    """

    model_type = "rwkv6"

    def __init__(self, mix_low_rank_dim: int = 32, decay_low_rank_dim: int = 64, **kwargs: Any) -> None:
        super().__init__(**{"architectures": ["Rwkv6ForCausalLM"], "auto_map": None, **kwargs})
        self.mix_low_rank_dim, self.decay_low_rank_dim = mix_low_rank_dim, decay_low_rank_dim


class Rwkv6ForCausalLM(RwkvForCausalLM):
    """RWKV-6 with a language model head.

    The linear layers have the names of RWKV-7's, and two more: ``attn.gate`` and ``ffn.receptance``. All other
    parameters of a layer are in its ``mix``, under the names of RWKV's own files.
    """

    config_class = Rwkv6Config

    def __init__(self, config: Rwkv6Config) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.attn, layer.ffn = _TimeMix(config), _ChannelMix(config)


class _Vectors(nn.Module):
    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def _linear(in_features: int, out_features: int) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias=False)


class _TimeMix(nn.Module):
    def __init__(self, config: Rwkv6Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.attention_hidden_size
        self.heads = config.num_heads
        self.mix: Any = _Vectors(
            {
                **{f"time_maa_{name}": (1, 1, width) for name in f"x{MOVED}"},
                "time_maa_w1": (width, len(MOVED) * config.mix_low_rank_dim),
                "time_maa_w2": (len(MOVED) * config.mix_low_rank_dim, width),
                "time_decay": (1, 1, inner),
                "time_decay_w1": (width, config.decay_low_rank_dim),
                "time_decay_w2": (config.decay_low_rank_dim, inner),
                "time_faaaa": (config.num_heads, config.head_dim),
            }
        )
        self.r_proj, self.k_proj, self.v_proj, self.gate = (_linear(width, inner) for _ in range(4))
        self.o_proj = _linear(inner, width)
        self.g_norm = nn.GroupNorm(config.num_heads, inner, eps=config.head_dim * config.norm_eps)

    def forward(
        self, hidden_states: Tensor, state: Tensor, shift_state: Tensor, v_first: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, mix = hidden_states, self.mix
        shifted, shift_state = token_shift(x, shift_state, mask)
        delta = shifted - x
        low = torch.tanh((x + delta * mix.time_maa_x) @ mix.time_maa_w1).unflatten(-1, (len(MOVED), -1))
        by_token = torch.einsum("btnd,ndc->nbtc", low, mix.time_maa_w2.unflatten(0, (len(MOVED), -1)))
        w, k, v, r, g = (
            x + delta * (getattr(mix, f"time_maa_{name}") + moved) for name, moved in zip(MOVED, by_token, strict=True)
        )
        wide = torch.promote_types(x.dtype, torch.float32)
        decay = -torch.exp(mix.time_decay.to(wide) + (torch.tanh(w @ mix.time_decay_w1) @ mix.time_decay_w2).to(wide))
        r, decay, k, v = (
            y.unflatten(-1, (self.heads, -1)) for y in (self.r_proj(r), decay, self.k_proj(k), self.v_proj(v))
        )
        y, state = recurrence(r, decay, k, v, mix.time_faaaa, state, mask)
        y = self.g_norm(y.flatten(2).flatten(0, 1)).view(*x.shape[:2], -1)
        return _hide(self.o_proj(y * F.silu(self.gate(g))), mask), state, shift_state, v_first


class _ChannelMix(nn.Module):
    def __init__(self, config: Rwkv6Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.mix: Any = _Vectors({f"time_maa_{name}": (1, 1, width) for name in "kr"})
        self.key, self.receptance = _linear(width, config.intermediate_size), _linear(width, width)
        self.value = _linear(config.intermediate_size, width)

    def forward(self, hidden_states: Tensor, shift_state: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = hidden_states
        shifted, shift_state = token_shift(x, shift_state, mask)
        delta = shifted - x
        key = torch.relu(self.key(x + delta * self.mix.time_maa_k)).square()
        y = torch.sigmoid(self.receptance(x + delta * self.mix.time_maa_r)) * self.value(key)
        return _hide(y, mask), shift_state


def _hide(y: Tensor, mask: Tensor) -> Tensor:
    return y if hides_nothing(mask) else y * mask[..., None].to(y.dtype)
