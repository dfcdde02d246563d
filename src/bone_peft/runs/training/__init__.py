"""Fine-tuning from a recipe."""

from .recipe import Recipe
from .result import TrainResult
from .train import TrainingStopped, dry_run, train

__all__ = ["Recipe", "TrainResult", "TrainingStopped", "dry_run", "train"]
