"""The mathematics of Bone and its plumbing to PEFT: all that ``import bone_peft`` needs."""

from .check import check
from .tuner import BoneConfig, BoneLayer, BoneLinear, BoneModel
from .tuner.register import register

__all__ = ["BoneConfig", "BoneLayer", "BoneLinear", "BoneModel", "check", "register"]
