"""Fold adapters into a base that is in files, tensor by tensor, without building the model."""

from .merge import Merged, merge
from .verify import Verified, verify

__all__ = ["Merged", "Verified", "merge", "verify"]
