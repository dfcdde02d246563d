"""``bone_peft.runs.training`` by the name that it had in version 0.1."""

from bone_peft.runs.training import Recipe, TrainResult, train

__all__ = ["Recipe", "TrainResult", "train"]
