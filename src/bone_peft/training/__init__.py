"""Fine-tuning from a recipe."""

from bone_peft.training.recipe import Recipe
from bone_peft.training.train import TrainingStopped, TrainResult, train

__all__ = ["Recipe", "TrainResult", "TrainingStopped", "train"]
