"""GGUF files of two layers, with random weights and a vocabulary of single letters."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

HIDDEN = 32
ATTENTION = {"attn_q": (32, HIDDEN), "attn_k": (16, HIDDEN), "attn_v": (16, HIDDEN), "attn_output": (HIDDEN, 32)}
NORMS = {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}


def write_small_gguf(
    path: Path, architecture: str, layer: dict, more: dict | None = None, settings: Callable = lambda writer: None
) -> None:
    """Write one.

    Args:
        path: the file.
        architecture: GGUF's word for it.
        layer: shapes of a layer's tensors, by GGUF's names; what ends in ``_exps`` is quantized.
        more: shapes of tensors beside embedding and norm.
        settings: adds fields of its own.
    """
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*map(chr, range(33, 96)), '!"'])
    writer.add_token_merges(['! "'])
    settings(writer)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (64, HIDDEN), "output_norm": (HIDDEN,), **(more or {})}
    shapes |= {f"blk.{number}.{name}": shape for number in range(2) for name, shape in layer.items()}
    for name, shape in shapes.items():
        values = random.normal(size=shape, scale=0.3).astype(np.float32)
        if name.endswith("_exps"):
            packed = quants.quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
