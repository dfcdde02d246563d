"""Fold adapters into a base that is in files, tensor by tensor, without building the model."""

from .fold import Folded, fold

__all__ = ["Folded", "fold"]
