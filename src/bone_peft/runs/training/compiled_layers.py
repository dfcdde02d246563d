"""A model's layers through the compiler: one compilation for all that are alike, and for lines of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton
from transformers.modeling_layers import GradientCheckpointingLayer

from bone_peft.io.names import brief

WORTHWHILE = 1600
"""Steps from which on the compiler's time is won back: 40 s, and 25 ms a step, for a model of 3 B on an H100."""


def pays(model: Any, steps: int) -> bool:
    """Whether a run of so many steps is shorter with compiled layers: where there is Triton."""
    return steps >= WORTHWHILE and has_triton() and bool(layers_of(model))


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that a model is a stack of."""
    stacks = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return [layer for stack in stacks for layer in stack if isinstance(layer, GradientCheckpointingLayer)]


def compile_layers(model: nn.Module, try_out: Callable[[], object]) -> str | None:
    """Compile the layers of ``model``; if ``try_out`` fails, none is. Returns why, in words, or None."""
    layers = layers_of(model)
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        try_out()
    except torch.OutOfMemoryError:
        plain_layers(model)
        return "it takes more memory than there is"
    except Exception as error:  # the compiler's errors are of many kinds
        plain_layers(model)
        return brief(error)
    return None


def plain_layers(model: nn.Module) -> None:
    """As before :func:`compile_layers`."""
    _call(dict.fromkeys(layers_of(model)))


@contextmanager
def set_aside(model: nn.Module) -> Iterator[None]:
    """Inside, no layer is compiled."""
    before = {layer: layer._compiled_call_impl for layer in layers_of(model)}
    plain_layers(model)
    try:
        yield
    finally:
        _call(before)


def _call(compiled: dict[nn.Module, Any]) -> None:
    for layer, call in compiled.items():
        any_layer: Any = layer
        any_layer._compiled_call_impl = call
