"""The mathematics of Bone and its plumbing to PEFT: what makes Bone a method of PEFT."""

import peft  # noqa: F401  (first: Bone is registered when this is done, and that comes back to this package)

from .check import check
from .tuner import BoneConfig, BoneLayer, BoneLinear, BoneModel

__all__ = ["BoneConfig", "BoneLayer", "BoneLinear", "BoneModel", "check"]
