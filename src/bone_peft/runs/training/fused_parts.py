"""Norms, rotary embeddings and gates as Liger's kernels, which read and write each number once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from .same_step import same_step

_WHICH = {"cross_entropy": False, "fused_linear_cross_entropy": False}  # of answers alone, our own is as good


class FusedParts:
    """Liger's kernels in a model, until :meth:`undo`. Nothing happens if Liger is not installed or knows it not.

    Args:
        model: as in Transformers, with adapters or without.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: dict[nn.Module, dict[str, Any]] = {}
        self._names: dict[Any, dict[str, Any]] = {}
        self._model = model

    def apply(self, compute: Callable[[], list[Tensor]]) -> str | None:
        """Take the kernels if ``compute``, a step's loss and gradients, gives the same with them. Why not, or None."""
        if not is_liger_kernel_available():
            return "liger-kernel is not installed (with it, steps are a quarter shorter)"
        expected = compute()
        self._modules = {module: dict(vars(module)) for module in self._model.modules()}
        self._names = {sys.modules[name]: dict(vars(sys.modules[name])) for name in _modelling()}
        try:
            apply_liger_kernel(self._model, _WHICH)
            found = compute()
        except Exception as error:  # a kernel may not compile, or not know a version of the model
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        else:
            reason = "" if same_step(found, expected) else "the model computes something else with Liger's kernels"
        if reason:
            self.undo()
        return reason or None

    def undo(self) -> None:
        """The model, and the code of Transformers, as before."""
        for owner, before in (*self._modules.items(), *self._names.items()):
            now = vars(owner)
            for name in now.keys() - before.keys():
                del now[name]
            now.update((name, value) for name, value in before.items() if now[name] is not value)
        self._modules, self._names = {}, {}


def _modelling() -> list[str]:
    return [name for name in sys.modules if name.startswith("transformers.models.") and ".modeling_" in name]
