"""Tiny models with random weights, of the architectures that the tests need."""

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from bone_peft import BoneConfig

ALL_VARIANTS = ["bone", "bat", "bat-input", "bottleneck"]
LLAMA_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Of a model that is as Llama."""


def config_for(variant: str, r: int = 8, **kwargs) -> BoneConfig:
    """A config of the given variant with tensors of size ``r``."""
    options = {
        "bone": {"r": r},
        "bat": {"r": r, "init_weights": "bat"},
        "bat-input": {"r": r, "init_weights": "bat", "share": "input"},
        "bottleneck": {"bottleneck_size": r},
    }[variant]
    return BoneConfig(**{"task_type": "CAUSAL_LM", "target_modules": LLAMA_LINEARS, **options, **kwargs})


def randomize(model: nn.Module, std: float = 0.05, adapter: str | None = None) -> nn.Module:
    """Give the adapters random values: at the start they do nothing."""
    for name, parameter in model.named_parameters():
        if ".bone_" in name and (adapter is None or f".{adapter}." in name):
            nn.init.normal_(parameter, std=std)
    return model


def llama(**kwargs) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, "max_position_embeddings": 64, **kwargs})).eval()


def opt(**kwargs) -> OPTForCausalLM:
    settings = {
        "vocab_size": 64,
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 64,
    }
    return OPTForCausalLM(OPTConfig(**{**settings, **kwargs})).eval()


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


def tokens(rows: int = 3, length: int = 11, vocab: int = 64) -> torch.Tensor:
    return torch.randint(3, vocab, (rows, length))
