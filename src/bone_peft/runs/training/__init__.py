"""Fine-tuning from a recipe."""

from .recipe import Recipe
from .result import TrainResult
from .train import TrainingStopped, train

__all__ = ["Recipe", "TrainResult", "TrainingStopped", "train"]
