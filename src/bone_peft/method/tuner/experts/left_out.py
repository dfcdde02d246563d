"""Stacks of matrices that stay as they are: experts of a kind that is not known, and what else is 3-D."""

from __future__ import annotations

from torch import nn

from ..layer import BoneLayer
from .kinds import kind_of

_NO_MATRICES = (nn.modules.conv._ConvNd, nn.Embedding)
_WHY = (
    "is a stack of matrices of a {}, and of those Bone adapts experts that run through Transformers' experts "
    "interface, Llama 4's and LongCat-Flash's"
)


def left_out(model: nn.Module) -> dict[str, str]:
    """Parameters of ``model`` with several matrices that cannot be adapted, and why, as the predicate of a sentence."""
    found: dict[str, str] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, BoneLayer):
            inside.update(module.modules())
        elif module not in inside and not isinstance(module, _NO_MATRICES) and kind_of(module) is None:
            for key, parameter in module.named_parameters(recurse=False):
                # DBRX has the matrices of all experts below one another.
                is_stack = parameter.ndim == (2 if type(module).__name__.startswith("DbrxExpert") else 3)
                if name and is_stack and min(parameter.shape) > 1:
                    found[f"{name}.{key}"] = _WHY.format(type(module).__name__)
    return found
