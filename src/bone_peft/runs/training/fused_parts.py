"""Norms, rotary embeddings and gates as Liger's kernels, which read and write each number once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.utils import is_liger_kernel_available

from bone_peft.io.names import brief

from .same_step import same_step

_NOTHING = object()
_WHICH = {"cross_entropy": False, "fused_linear_cross_entropy": False}  # of answers alone, our own is as good


class FusedParts:
    """Liger's kernels in a model, until :meth:`undo`.

    Args:
        model: as in Transformers, with adapters or without.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def apply(self, compute: Callable[[], list[Tensor]]) -> str | None:
        """Take the kernels if ``compute``, a step's loss and gradients, gives the same with them. Why not, or None."""
        if not is_liger_kernel_available():
            return "liger-kernel is not installed (with it, steps are a quarter shorter)"
        expected = compute()
        owners = [*self._model.modules(), *(sys.modules[name] for name in _modelling())]
        before = [dict(vars(owner)) for owner in owners]
        try:
            apply_liger_kernel(self._model, _WHICH)
        except Exception as error:  # it may not know this version of the model
            reason = brief(error)
        else:
            reason = ""
        self._before = [
            (vars(owner), name, old.get(name, _NOTHING))
            for owner, old in zip(owners, before, strict=True)
            for name, value in vars(owner).items()
            if value is not old.get(name, _NOTHING)
        ]
        if not self._before and not reason:
            return "Liger's kernels know no such model"
        reason = reason or self._fault(compute, expected)
        if reason:
            self.undo()
        return reason or None

    def _fault(self, compute: Callable[[], list[Tensor]], expected: list[Tensor]) -> str:
        try:
            found = compute()
        except Exception as error:  # a kernel may not compile
            return brief(error)
        return "" if same_step(found, expected) else "the model computes something else with Liger's kernels"

    def undo(self) -> None:
        """The model, and the code of Transformers, as before."""
        for names, name, value in self._before:
            if value is _NOTHING:
                names.pop(name, None)
            else:
                names[name] = value
        self._before = []


def apply_liger_kernel(model: Any, which: dict[str, bool]) -> None:
    """As the trainer of Transformers does when it is asked to."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=getattr(model, "get_base_model", lambda: model)(), **which)


def _modelling() -> list[str]:
    return [name for name in sys.modules if name.startswith("transformers.models.") and ".modeling_" in name]
