"""A tiny model of an architecture, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .kinds import KINDS
from .shrinking import tiny_config

# What the names of a config's fields do not tell, by the architecture's name or its type.
FIXES = json.loads(Path(__file__).with_name("fixes.json").read_text(encoding="utf-8"))


def tiny_model(kind: str, name: str) -> PreTrainedModel:
    """The model, ready to be run."""
    model_type, class_name = KINDS[kind][name]
    config = tiny_config(model_type, FIXES.get(f"{kind}/{name}", FIXES.get(model_type, {})))
    if kind == "sequence-classification":
        config.get_text_config().pad_token_id = 0
    model = _random(getattr(transformers, class_name), config)
    return model.train(model_type == "reformer")  # which has a backward only while it trains


def _random(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Every parameter is random: fresh ones hold zeros and ones, which hide what is not computed."""
    wanted = model_class.config_class
    if not isinstance(config, wanted):  # the text model of a larger one
        config = next((part for part in vars(config).values() if isinstance(part, wanted)), config)
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = model_class(config).float().eval()
    # A convolution has to hand on what it gets: of little, nothing is left after some of them.
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))}
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim > 1:
                std = parameter[0].numel() ** -0.5 if id(parameter) in convolutions else 0.1
                nn.init.normal_(parameter, std=std)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model
