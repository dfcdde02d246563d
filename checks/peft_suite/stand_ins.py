"""Tiny random models, under the names of those that PEFT's tests load from the Hub."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_COMMIT = "0" * 40
_SIZE = {"vocab_size": 1024, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_HEADS = {"num_attention_heads": 4}
_LLAMA = {**_SIZE, **_HEADS, "num_key_value_heads": 4, "pad_token_id": 0}
_GROUPED = {**_SIZE, **_HEADS, "num_key_value_heads": 2, "pad_token_id": 0}
_BERT = {**_SIZE, "hidden_size": 32, **_HEADS, "max_position_embeddings": 130}
_DEBERTA = {**_BERT, "relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
_GPT2 = {"vocab_size": 1024, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 130, **_ENDS}
_OPT = {"vocab_size": 1024, "num_hidden_layers": 2, **_HEADS, "max_position_embeddings": 130}
_SMALL_OPT = {**_OPT, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 64}

_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", {**_GROUPED, "head_dim": 8}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", _GROUPED),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", _GPT2),
    # A test of quantization counts 12 layers.
    "peft-internal-testing/opt-125m": (
        "OPTForCausalLM",
        {**_OPT, "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 256, "num_hidden_layers": 12},
    ),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", _GROUPED),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": (
        "BartForConditionalGeneration",
        {
            "vocab_size": 1024,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 130,
            "init_std": 0.2,
        },
    ),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("BertForSequenceClassification", _BERT),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", _BERT),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", _DEBERTA),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", _DEBERTA),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", _GPT2),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", {**_GPT2, "rotary_dim": 4}),
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", _SMALL_OPT),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": ("RobertaForSequenceClassification", _BERT),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", _BERT),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": 1024,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", _GPT2),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", _LLAMA),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": ("Qwen3ForCausalLM", {**_GROUPED, "head_dim": 8}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", _LLAMA),
}
# Names and revisions of adapters of which tests read the config.
_ADAPTERS = {"peft-internal-testing/tiny-opt-lora-revision": "test"}


def hub_of_stand_ins(cache: Path) -> Path:
    """A folder as the Hub's own cache, with the stand-ins in it. Made once for each release of Transformers."""
    transformers.logging.disable_progress_bar()
    table = zlib.crc32(repr((_MODELS, _ADAPTERS)).encode())
    hub = cache / f"hub-transformers-{transformers.__version__}-{table:08x}"
    for name, (model_class, options) in _MODELS.items():
        _put(hub, name, "main", partial(_save_model, model_class, options))
    for name, revision in _ADAPTERS.items():
        _put(hub, name, revision, LoraConfig().save_pretrained)
    return hub


def _put(hub: Path, name: str, revision: str, save: Callable[[Path], None]) -> None:
    repository = hub / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / revision
    if not reference.exists():
        shutil.rmtree(repository, ignore_errors=True)
        save(repository / "snapshots" / _COMMIT)
        reference.parent.mkdir()
        reference.write_text(_COMMIT)


def _save_model(model_class: str, options: dict[str, Any], folder: Path) -> None:
    torch.manual_seed(0)
    cls = getattr(transformers, model_class)
    cls(cls.config_class(**options)).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, start, end, unknown, mask = words[:5]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        unk_token=unknown,
        mask_token=mask,
        model_max_length=100,
    )
