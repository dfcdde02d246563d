"""A base folder small enough to train in a blink: a Llama over bytes, with or without a chat template."""

import json
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
SPECIAL = ["<pad>", "</s>", "<u>", "<a>", "<s>", "<?>"]


def make_base(folder: Path, *, chat: bool, seed: int = 0, hidden: int = 32) -> Path:
    """Write a random Llama in fp32 whose tokens are single characters; returns ``folder``."""
    letters = SPECIAL + sorted(string.printable)
    core = Tokenizer(WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<?>"))
    core.pre_tokenizer = Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<?>",
        additional_special_tokens=["<u>", "<a>", "<s>"],
    )
    tokenizer.chat_template = CHAT if chat else None
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int, start: int = 0) -> list[dict]:
    """Rows of different lengths with the columns ``query`` and ``response``."""
    return [{"query": f"{i * 37}+{i}=", "response": str(i * 38)} for i in range(start, start + count)]
