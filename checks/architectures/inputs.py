"""Inputs that reach all of a tiny model, by what its ``forward`` takes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .shrinking import SEQUENCE, VOCABULARY

Inputs = dict[str, Any]


def inputs_for(model: PreTrainedModel) -> Inputs:
    """Two rows of what the model reads, or one of an image with text. What reads text and sound gets text alone."""
    wanted = set(inspect.signature(model.forward).parameters)
    config = model.config
    random = torch.Generator().manual_seed(1)
    inputs = _text(model, wanted, random) if "input_ids" in wanted else {}
    if "pixel_values" in wanted and getattr(config, "vision_config", config) is not None:
        inputs |= _image(model, wanted, random)
        if "image_attention_mask" in wanted:
            inputs["input_ids"] = inputs["input_ids"][:1]
            inputs["image_attention_mask"] = torch.ones(1, SEQUENCE, 1, dtype=torch.long)
        if "input_ids" in wanted:
            inputs |= _text_with_image(model, inputs, wanted)
    elif "input_features" in wanted and not hasattr(config, "text_config"):
        inputs["input_features"] = torch.randn(_spectrogram(config), generator=random)
    elif "input_values" in wanted and not hasattr(config, "text_config"):
        inputs["input_values"] = torch.randn(_sound(config), generator=random)
    if "decoder_input_ids" in wanted and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = _ids(random)
    return inputs


def _ids(random: torch.Generator, rows: int = 2) -> Tensor:
    return torch.randint(5, 90, (rows, SEQUENCE), generator=random)


def _text(model: PreTrainedModel, wanted: set[str], random: torch.Generator) -> Inputs:
    config = model.config
    ids = _ids(random, 2 * config.num_codebooks if "musicgen" in config.model_type else 2)
    end = getattr(config, "eos_token_id", None)
    if getattr(config, "is_encoder_decoder", False) and isinstance(end, int):
        ids[:, -1] = end  # Some classify by it.
    inputs: Inputs = {"input_ids": ids}
    if "use_cache" in wanted:
        inputs["use_cache"] = False
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in wanted:
        inputs["decoder_input_ids"] = ids.flip(1)
    return inputs


def _image(model: PreTrainedModel, wanted: set[str], random: torch.Generator) -> Inputs:
    inputs: Inputs = {"pixel_values": torch.randn(_pixels(model.config, wanted), generator=random)}
    if "image_grid_thw" in wanted:
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]])
    if "image_sizes" in wanted and model.config.model_type != "llava":
        inputs["image_sizes"] = torch.tensor([[64, 64] if model.config.model_type == "llava_next" else [32, 32]])
    if "spatial_shapes" in wanted:
        inputs |= {"spatial_shapes": torch.tensor([[4, 4]] * 2), "pixel_attention_mask": torch.ones(2, 16).long()}
    return inputs


def _pixels(config: Any, wanted: set[str]) -> tuple[int, ...]:
    vision = getattr(config, "vision_config", config)
    channels = getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3
    if "image_grid_thw" in wanted:
        return 16, channels * vision.temporal_patch_size * vision.patch_size**2
    if config.model_type == "fuyu":
        return 1, 16, channels * vision.patch_size**2
    if config.model_type == "siglip2":
        return 2, 16, channels * vision.patch_size**2
    size = getattr(vision, "image_size", None) or 32
    size = size if isinstance(size, int) else size[0]
    if config.model_type == "llava_next":
        return 1, 5, channels, size, size  # the image, and four parts of it
    if config.model_type.startswith(("idefics", "smolvlm", "modernvbert", "ultravbert")):
        return 1, 1, channels, size, size
    return 1 if "input_ids" in wanted else 2, channels, size, size


def _text_with_image(model: PreTrainedModel, inputs: Inputs, wanted: set[str]) -> Inputs:
    """One row of text with as many image tokens as the image has features, if the model puts those in their place."""
    reader = next((part for part in model.modules() if hasattr(part, "get_image_features")), None)
    if reader is None:
        return {}
    token = getattr(model.config, "image_token_id", None) or getattr(model.config, "image_token_index", None)
    text = inputs["input_ids"][:1]
    if token is None or token >= VOCABULARY:  # two towers, or cross attention
        return {"input_ids": text}
    taken = set(inspect.signature(reader.get_image_features).parameters) - {"input_ids"}
    with torch.no_grad():
        found = reader.get_image_features(**{k: v for k, v in inputs.items() if k in taken})
    features = getattr(found, "pooler_output", found)
    features = found.last_hidden_state if features is None else features
    features = torch.cat(list(features)) if isinstance(features, (list, tuple)) else features
    count = features.numel() // features.shape[-1]
    ids = torch.cat([text[:, :4], torch.full((1, count), token), text[:, 4:]], 1)
    types = (ids == token).long()
    decoded = {k: v[:1] for k, v in inputs.items() if k == "decoder_input_ids"}
    return {"input_ids": ids} | decoded | {k: types for k in ("token_type_ids", "mm_token_type_ids") if k in wanted}


def _spectrogram(config: Any) -> tuple[int, ...]:
    bands = getattr(config, "num_mel_bins", None) or getattr(config, "feature_projection_input_dim", 16)
    length = 2 * getattr(config, "max_source_positions", 32)
    return (2, bands, length) if config.model_type == "whisper" else (2, length, bands)


def _sound(config: Any) -> tuple[int, ...]:
    spectrogram = config.model_type == "audio-spectrogram-transformer"
    return (2, config.max_length, config.num_mel_bins) if spectrogram else (2, 8000)
