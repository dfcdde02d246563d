"""RWKV-7 (x070) and RWKV-6 (x060): ``.pth`` checkpoints as Hugging Face models, and back. Needs the extra ``rwkv``."""

from bone_peft.method.tuner import BoneModel

from .pth_names import TARGETS, TARGETS_X060

BoneModel.register_targets("rwkv7", TARGETS)
BoneModel.register_targets("rwkv6", TARGETS_X060)
