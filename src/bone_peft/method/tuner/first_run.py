"""A net for models that nobody has seen: the first time that one runs, is an adapter passed by?"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from bone_peft.errors import BoneError

from .layer import BoneLayer

_KEY: Any = "bone_peft first run"


class _Seen(threading.local):
    """The layers that were called, and whose weight was read, in the run that is watched in this thread."""

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.called: set[int] = set()
        self.read: set[int] = set()

    def start(self, layers: list[BoneLayer]) -> None:
        self.stop()
        self.called, self.read = set(), set()
        for layer in layers:
            module: Any = layer
            self.handles.append(module.register_forward_pre_hook(lambda m, _: self.called.add(id(m))))
            layer.on_read = lambda layer: self.read.add(id(layer))

    def stop(self) -> None:
        while self.handles:
            self.handles.pop().remove()


_seen = _Seen()


def watch_first_run(model: nn.Module) -> None:
    """Have the next run of ``model`` looked at."""
    model._forward_pre_hooks[_KEY] = _begin
    model._forward_hooks[_KEY] = _end


def _layers(model: nn.Module) -> dict[str, BoneLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BoneLayer)}


def _begin(model: nn.Module, _: Any) -> None:
    if not torch.compiler.is_compiling():
        _seen.start(list(_layers(model).values()))


def _end(model: nn.Module, *_: Any) -> None:
    if torch.compiler.is_compiling() or not _seen.handles:
        return
    _seen.stop()
    del model._forward_pre_hooks[_KEY], model._forward_hooks[_KEY]
    layers = _layers(model)
    for layer in layers.values():
        layer.on_read = None
    passed_by = [name for name, layer in layers.items() if id(layer) in _seen.read - _seen.called]
    if passed_by:
        raise BoneError(
            f"This model reads the weight of {', '.join(passed_by[:3])}{' and others' if len(passed_by) > 3 else ''} "
            "without calling the layer, so the adapter there has no effect: name it in exclude_modules."
        )
