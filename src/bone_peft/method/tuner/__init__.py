"""Bone as a PEFT tuner: a config, a layer and a model, as PEFT's own methods have."""

from .config import BoneConfig
from .layer import BoneLayer, BoneLinear
from .model import BoneModel

__all__ = ["BoneConfig", "BoneLayer", "BoneLinear", "BoneModel"]
