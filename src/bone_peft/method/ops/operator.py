"""Functions as operators that ``torch.compile`` does not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("bone_peft", "DEF")


class Operator:
    """``torch.ops.bone_peft.<name>``.

    ``torch.library.custom_op`` does the same at twice the cost to the host or more, most of it for checks of what the
    function returns.
    """

    def __init__(self, schema: str, function: Callable[..., Any]) -> None:
        name = schema.partition("(")[0]
        self._name = f"bone_peft::{name}"
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
        _library.impl(name, function, "CompositeExplicitAutograd")

    def fake(self, function: Callable[..., Any]) -> None:
        """Decorates the function that gives results of the right shape and dtype without computing them."""
        torch.library.register_fake(self._name, function, lib=_library)

    def backward(self, function: Callable[..., Any], save: Callable[..., None]) -> None:
        """Make it differentiable, as in ``torch.library.register_autograd``."""
        torch.library.register_autograd(self._name, function, setup_context=save, lib=_library)


def operator(schema: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorates a function that changes none of its arguments, returns new memory and takes any strides.

    The compiler relies on all three and checks none. Defined once for each process: modules with operators cannot be
    reloaded.

    Args:
        schema: in PyTorch's language for operators, with the name and without the namespace.
    """
    return lambda function: Operator(schema, function)
