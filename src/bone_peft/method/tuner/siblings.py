"""Which layers may read one ``x`` is known from the structure: those of one attention, or of one MLP."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..ops.shared import closed, opened
from .layer import BoneLayer

# The compiler compiles again for each new key, and PyTorch would give every module another one.
_KEY: Any = "bone_peft"


def watch(model: nn.Module) -> None:
    """Have each module that holds several layers with block sums say when it runs, and no other."""
    for parent in model.modules():
        readers = [child for child in parent.children() if isinstance(child, BoneLayer) and child.sums_blocks]
        if len(readers) > 1:
            parent._forward_pre_hooks[_KEY] = opened
            parent._forward_hooks[_KEY] = closed
            # A checkpoint stops computing again by an error, as soon as it has what backward needs.
            parent._forward_hooks_always_called[_KEY] = True
        else:
            parent._forward_pre_hooks.pop(_KEY, None)
            parent._forward_hooks.pop(_KEY, None)
            parent._forward_hooks_always_called.pop(_KEY, None)
