"""The config of any architecture, made tiny: its fields are shrunk by what their names say."""

from __future__ import annotations

import re
from typing import Any

from transformers import AutoConfig, PretrainedConfig

SEQUENCE = 16  # tokens in a row of the inputs
VOCABULARY = 128
IMAGE_TOKEN = 100

_KEEP, _LAYERS = object(), object()
# (the name of a field, its tiny value); the first that matches wins.
_RULES = [
    # Mixtures of experts
    (r"(num|n)_shared_experts|moe_num_shared_experts", 1),
    (r"\w*(num_experts|routed_experts|local_experts)", 4),
    (r"zero_expert_num", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts|num_selected_experts", 2),
    (r"moe_intermediate_size|expert_ffn_hidden_size|\w*shared_experts?_intermediate_size|shared_intermediate_size", 32),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"moe_layer_end_index", _KEEP),
    # Tokens
    (r"pad_token_id|pad_index", 0),
    (r"bos_token_id|bos_index|decoder_start_token_id", 1),
    (r"eos_token_id|eos_index", 2),
    (r"image_token_(id|index)", IMAGE_TOKEN),
    (r"video_token_(id|index)", 101),
    (r"audio_token_(id|index)", 102),
    (r".*_(token_id|token_index|token_idx|token)", 103),
    (r"type_vocab_size|task_type_vocab_size|n_langs", _KEEP),
    (r"(\w+_)?vocab_size(_\w+)?|\w+_group_vocab|vocab_offset", VOCABULARY),
    (r"codebook_size", 64),
    # Layers
    (r"(num|n)_(hidden_)?layers?|\w*num_hidden_layers|(en|de)coder_layers|depth|num_blocks", _LAYERS),
    (r"num_(en|de)coder_layers", _LAYERS),
    (r"num_layers_per_stack|n_layers_per_attn_res_block", 1),
    (r"num_kv_shared_layers|num_nextn_predict_layers|max_window_layers", 0),
    (r"num_global_layers", 1),
    (r"\w*(layer_period|layer_interval|every_n_layers|attention_interval|sliding_window_pattern|layer_group_size)", 2),
    (r"\w*layer_offset", 1),
    # Heads
    (r"mamba_(n|num)_heads|n_mamba_heads", 8),
    (r"num_kv_heads|kv_n_heads|\w*key_value_heads|linear_num_key_heads", 2),
    (r"num_query_groups", 4),
    (r"num_heads_per_ngram|heads_per_ngram", 2),
    (r"n_head|n_heads|(\w+_)?(num|attention)_\w*heads|num_heads|linear_num_heads|index_n_heads", 4),
    (r"qk_head_dim", 32),
    (r"\w*head_dim|attention_head_size|d_head|d_kv|dim_head|kv_channels|mamba_(d_head|headdim)", 16),
    (r"query_pre_attn_scalar|rotary_dim", 16),
    (r"\w*lora_rank|laurel_rank|\w+_lowrank|gated_norm_rank", 32),
    (r"index_topk|index_block_size", 8),
    # State spaces
    (r"mamba_d_ssm|(mamba|ssm)_intermediate_size", 128),
    (r"mamba_d_state|state_size|ssm_state_size", 16),
    (r"mamba_n_?groups|n_groups", 1),
    (r"\w*dt_rank|time_step_rank|\w*chunk_size", 16),
    # Widths
    (r"\w*intermediate_size\w*|\w*ffn\w*(_dim|_size)|d_ff|dff|dim_ff|d_inner|mlp_dim|feed_forward_size", 96),
    (r"hidden_size_per_layer_input|ple_embed_dim", 16),
    (r"\w*hidden_size\w*|d_model|n_embd|\w*embed(ding)?_(dim|size)|lru_width|word_embed_proj_dim|dim|emb_dim", 64),
    (r"\w*projection_(dim|size)|projector_(in|out)put_dim|classifier_proj_size|adapter_(in|out)_dim|output_dim", 64),
    # Lengths
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|context_length|seq_len", 64),
    (r"max_\w+_positions", 64),
    (r"original_max_position_embeddings", 32),
    (r"\w*sliding_window(_size)?|attention_window_size|window_size|\w*attn_chunk_length", 8),
    (r"image_size|crop_size", 32),
    (r"patch_size", 8),
    (r"num_mel_bins", 16),
]
RULES = [(re.compile(rf"(?:{pattern})$"), value) for pattern, value in _RULES]
_WHEN_LEFT_OUT = {"head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1}
_RANDOMNESS = re.compile(r"drop|jitter|noise|mask_\w+_prob")
# Said by other fields, or by the class.
_FOLLOWS = (
    "model_type",
    "transformers_version",
    "architectures",
    "id2label",
    "label2id",
    "dtype",
    "per_layer_config",
    "out_features",
    "out_indices",
    "stage_names",
)


def tiny_config(model_type: str, fixes: dict[str, Any]) -> PretrainedConfig:
    """The config of ``model_type``, shrunk.

    Args:
        model_type: its name in Transformers.
        fixes: what the names of the fields do not tell; a dotted name is a field of a config inside. ``layers`` is the
            number of layers.
    """
    return _shrunk(AutoConfig.for_model(model_type), fixes)


def _shrunk(config: PretrainedConfig, fixes: dict[str, Any]) -> PretrainedConfig:
    fields = config.to_dict()
    by_layer = _by_layer(fields)
    kinds = {name: list(dict.fromkeys(v)) for name, v in by_layer.items() if all(isinstance(x, str) for x in v)}
    layers = fixes.get("layers") or max([2, *map(len, kinds.values())])
    made: dict[str, Any] = {}
    for name, value in fields.items():
        if name in kinds:
            # Each kind of layer comes at least once, the last kind last: several architectures want that.
            made[name] = (kinds[name] * layers)[:layers]
        elif name in by_layer:
            made[name] = [_tiny(name, x, layers) for x in value[:layers]]
        elif isinstance(value, dict) and hasattr(getattr(config, name, None), "to_dict"):
            made[name] = _shrunk(getattr(config, name), _inside(fixes, name))
        elif isinstance(value, dict) and name != "rope_parameters":
            made[name] = value
        else:
            made[name] = _tiny(name, value, layers)
    if made.get("kv_lora_rank"):
        made["num_key_value_heads"] = 4  # Latent attention has a key for every query head.
    made |= {name: value for name, value in fixes.items() if "." not in name and name != "layers"}
    return type(config)(**{name: value for name, value in made.items() if name not in _FOLLOWS})


def _by_layer(fields: dict[str, Any]) -> dict[str, list]:
    """The fields that hold one value for each layer."""
    depth = next((fields[k] for k in ("num_hidden_layers", "n_layer", "num_layers") if fields.get(k)), None)
    if depth is None or depth <= 2:
        return {}
    return {name: v for name, v in fields.items() if isinstance(v, (list, tuple)) and len(v) == depth}


def _inside(fixes: dict[str, Any], name: str) -> dict[str, Any]:
    return {k.removeprefix(f"{name}."): v for k, v in fixes.items() if k.startswith(f"{name}.")}


def _tiny(name: str, value: Any, layers: int) -> Any:
    if isinstance(value, dict):
        return {k: _tiny(k, v, layers) for k, v in value.items()}
    if isinstance(value, float) and _RANDOMNESS.search(name):
        return 0.0
    if isinstance(value, list):
        return {"eos_token_id": 2, "mrope_section": [2, 3, 3]}.get(name, value)
    if value is None:
        return _WHEN_LEFT_OUT.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or (value <= 0 and "token" not in name):
        return value
    tiny = next((tiny for pattern, tiny in RULES if pattern.match(name)), _KEEP)
    return value if tiny is _KEEP else layers if tiny is _LAYERS else tiny
