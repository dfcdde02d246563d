"""Stacks of matrices that stay as they are: experts of a kind that is not known, and what else is 3-D."""

from __future__ import annotations

from torch import nn

from ..layer import BoneLayer
from . import interface

_NO_MATRICES = (nn.modules.conv._ConvNd, nn.Embedding)
_WHY = "is a 3-D parameter of a {}, and of those Bone adapts experts that run through Transformers' experts interface"


def left_out(model: nn.Module) -> dict[str, str]:
    """Parameters of ``model`` with several matrices that cannot be adapted, and why, as the predicate of a sentence."""
    found: dict[str, str] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, BoneLayer):
            inside.update(module.modules())
        elif module not in inside and not isinstance(module, _NO_MATRICES) and not interface.takes(module):
            for key, parameter in module.named_parameters(recurse=False):
                if name and parameter.ndim == 3 and min(parameter.shape) > 1:
                    found[f"{name}.{key}"] = _WHY.format(type(module).__name__)
    return found
