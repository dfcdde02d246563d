"""``bone_peft.files.merging`` by the name that it had in version 0.1."""

from bone_peft.files.merging import merge

__all__ = ["merge"]
