"""Fine-tuning from a recipe."""

from .recipe import Recipe
from .train import TrainingStopped, TrainResult, train

__all__ = ["Recipe", "TrainResult", "TrainingStopped", "train"]
