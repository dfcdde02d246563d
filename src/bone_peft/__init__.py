"""Bone: block-affine fine-tuning of language models. Importing it makes Bone a PEFT method."""

# The function takes the place of its package as an attribute here; the package can still be imported from.
from bone_peft.errors import BoneError
from bone_peft.files.conversion import convert
from bone_peft.method.tuner import BoneConfig, BoneLayer, BoneLinear, BoneModel
from bone_peft.method.tuner.register import register

__all__ = ["BoneConfig", "BoneError", "BoneLayer", "BoneLinear", "BoneModel", "convert"]
__version__ = "0.1.0"

register()
