"""Functions that ``torch.compile`` does not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

_library = torch.library.Library("bone_peft", "DEF")


class Operator:
    """A function that runs as it is, and as ``torch.ops.bone_peft.<name>`` where the compiler calls it.

    It has no gradient of its own: an autograd function calls one operator in forward and another in backward, and the
    compiler follows it there. So each backward is written once, for eager and compiled code.

    ``torch.library.custom_op`` does the same at twice the cost to the host or more, most of it for checks of what the
    function returns.
    """

    def __init__(self, schema: str, function: Callable[..., Any]) -> None:
        name = schema.partition("(")[0]
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
        _library.impl(name, _for_compiler(function), "CompositeExplicitAutograd")
        self._function = function
        self._operator = getattr(torch.ops.bone_peft, name).default
        self._name = f"bone_peft::{name}"

    def __call__(self, *args: Any) -> Any:
        # Tensors without values cannot be looked into either.
        is_traced = torch.compiler.is_compiling() or isinstance(args[0], FakeTensor)
        return self._operator(*args) if is_traced else self._function(*args)

    def fake(self, function: Callable[..., Any]) -> None:
        """Decorates the function that gives results of the right shape and dtype without computing them."""
        torch.library.register_fake(self._name, _for_compiler(function), lib=_library)


def operator(schema: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorates a function that changes none of its arguments and takes any strides. The compiler relies on both.

    The function may return ``None`` for a tensor that was not asked for; compiled code gets an empty one. Defined once
    for each process: modules with operators cannot be reloaded.

    Args:
        schema: in PyTorch's language for operators, with the name and without the namespace.
    """
    return lambda function: Operator(schema, function)


def _for_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as the compiler wants it: every result is a tensor, and none is an argument."""

    def call(*args: Any) -> Any:
        def own(result: Tensor | None) -> Tensor:
            if result is None:
                return args[0].new_empty(0)
            return result.clone() if any(result is arg for arg in args) else result

        results = function(*args)
        return tuple(map(own, results)) if isinstance(results, tuple) else own(results)

    return call
