"""Bone: block-affine fine-tuning of language models. Importing it makes Bone a PEFT method."""

from .errors import BoneError
from .tuner import BoneConfig, BoneLayer, BoneLinear, BoneModel
from .tuner.register import register

__all__ = ["BoneConfig", "BoneError", "BoneLayer", "BoneLinear", "BoneModel"]
__version__ = "0.1.0"

register()
