"""The mathematics of Bone and its plumbing to PEFT: what makes Bone a method of PEFT."""

# isort: off
from . import compat  # noqa: F401  (first: it refuses a PEFT that is too old)
import peft  # noqa: F401  (second: Bone is registered when this is done, and that comes back to this package)

# isort: on
from .check import check
from .tuner import BoneConfig, BoneLayer, BoneLinear, BoneModel

__all__ = ["BoneConfig", "BoneLayer", "BoneLinear", "BoneModel", "check"]
