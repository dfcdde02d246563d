"""RWKV-7 (x070): its ``.pth`` checkpoints as Hugging Face models, and back. Needs the extra ``rwkv``."""

from bone_peft.method.tuner import BoneModel

from .pth_names import TARGETS

BoneModel.register_targets("rwkv7", TARGETS)
