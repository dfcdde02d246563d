"""A net for models that nobody has seen: the first time that one runs, or trains, is an adapter passed by?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn

from bone_peft.errors import BoneError

from .layer import BoneLayer
from .sharded import is_managed, is_managed_itself, is_sharded

Layers = dict[str, BoneLayer]


class _Watch(threading.local):
    """Looks at one run of a model, in the thread that it is in. Keeps no model alive, whatever becomes of the run.

    Args:
        variable: of this file, that holds it: models are copied and pickled with their hooks.
    """

    def __init__(self, variable: str) -> None:
        self.variable = variable
        self.key: Any = f"bone_peft {variable}"
        self._handles: list[Callable[[], None]] = []

    def __reduce__(self) -> str:
        return self.variable

    def begin(self, model: nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling() or not self.concerns(model):
            return
        self._stop()
        self.start(model, _layers(model))

    def end(self, model: nn.Module, *_: Any) -> None:
        if torch.compiler.is_compiling() or not self._handles:
            return
        self._stop()
        model._forward_pre_hooks.pop(self.key, None)
        model._forward_hooks.pop(self.key, None)
        self.judge(_layers(model))

    def until_the_end(self, undo: Callable[[], None]) -> None:
        self._handles.append(undo)

    def on_call(self, layers: Layers, note: Callable[[BoneLayer], None]) -> None:
        for layer in layers.values():
            module: Any = layer
            self.until_the_end(module.register_forward_pre_hook(lambda m, _: note(m)).remove)

    def _stop(self) -> None:
        while self._handles:
            self._handles.pop()()

    def concerns(self, model: nn.Module) -> bool:
        """Whether this run tells."""
        return True

    def start(self, model: nn.Module, layers: Layers) -> None:
        raise NotImplementedError

    def judge(self, layers: Layers) -> None:
        """After it."""


class _Split(_Watch):
    """Was a layer split over processes after it got its adapter?"""

    def start(self, model: nn.Module, layers: Layers) -> None:
        for name, layer in layers.items():
            base = layer.get_base_layer()
            if layer.split is None and is_sharded(getattr(base, "weight", None)) and not is_managed(base):
                raise BoneError(
                    f"{name} was split over processes after it got its adapter, which knows nothing of that: load the "
                    "model with tp_plan first, and then the adapter."
                )


class _Apart(_Watch):
    """Does each process train an adapter of its own, beside a base that FSDP2 has them share?"""

    def concerns(self, model: nn.Module) -> bool:
        return _trains(model)

    def start(self, model: nn.Module, layers: Layers) -> None:
        for name, layer in layers.items():
            if not is_managed(layer.get_base_layer()) or is_managed_itself(layer):
                continue
            # The Trainer of Transformers has a hook that averages them.
            tensors = [tensor for adapter in layer.bone_variant for tensor in layer._parameters_of(adapter).values()]
            if any(tensor.requires_grad and not tensor._post_accumulate_grad_hooks for tensor in tensors):
                raise BoneError(
                    f"FSDP2 sharded this model before it got its adapter (see {name}), so nothing would add up the "
                    "adapter's gradients over processes: shard after get_peft_model()."
                )


class _PassedBy(_Watch):
    """Is a layer's weight read, and the layer never called?"""

    def start(self, model: nn.Module, layers: Layers) -> None:
        self.called: WeakSet[BoneLayer] = WeakSet()
        self.read: WeakSet[BoneLayer] = WeakSet()
        self.on_call(layers, self.called.add)
        for layer in layers.values():
            layer.on_read = self.read.add
            self.until_the_end(partial(_ask_no_more, ref(layer)))

    def judge(self, layers: Layers) -> None:
        if names := [name for name, layer in layers.items() if layer in self.read - self.called]:
            raise BoneError(
                f"This model reads the weight of {_listed(names)} without calling the layer, so the adapter there has "
                "no effect: name it in exclude_modules."
            )


class _WithoutGradient(_Watch):
    """Does a model call layers within functions of its own, which learn nothing from frozen inputs?

    Reversible layers and reentrant checkpoints compute without autograd, and again in their backward, which comes only
    if their input asks for a gradient.
    """

    def concerns(self, model: nn.Module) -> bool:
        return _trains(model)

    def start(self, model: nn.Module, layers: Layers) -> None:
        self.with_grad: WeakSet[BoneLayer] = WeakSet()
        self.without: WeakSet[BoneLayer] = WeakSet()
        self.inputs_ask = False
        self.on_call(layers, self._note)
        if (embedding := _input_embedding(model)) is not None:
            self.until_the_end(embedding.register_forward_hook(self._embedded).remove)

    def _note(self, layer: BoneLayer) -> None:
        (self.with_grad if torch.is_grad_enabled() else self.without).add(layer)

    def _embedded(self, _: nn.Module, __: Any, output: Any) -> None:
        self.inputs_ask |= isinstance(output, Tensor) and output.requires_grad

    def judge(self, layers: Layers) -> None:
        mute = self.without - self.with_grad
        names = [name for name, layer in layers.items() if layer in mute and _is_trained(layer)]
        if names and not self.inputs_ask:
            raise BoneError(
                f"No gradient reaches the adapter of {_listed(names)}: this model computes it without autograd "
                "(in reversible layers, or a reentrant checkpoint), and takes the gradient only where its input asks "
                "for one. Call model.enable_input_require_grads() before training, or name it in exclude_modules."
            )


_SPLIT, _APART = _Split("_SPLIT"), _Apart("_APART")
_PASSED_BY, _WITHOUT_GRADIENT = _PassedBy("_PASSED_BY"), _WithoutGradient("_WITHOUT_GRADIENT")


def watch_first_run(model: nn.Module) -> None:
    """Have the next run of ``model`` looked at, and the next one in training."""
    for watch in (_SPLIT, _APART, _PASSED_BY, _WITHOUT_GRADIENT):
        model._forward_pre_hooks[watch.key] = watch.begin
        model._forward_hooks[watch.key] = watch.end


def _trains(model: nn.Module) -> bool:
    return model.training and torch.is_grad_enabled()


def _ask_no_more(reference: ref[BoneLayer]) -> None:
    layer = reference()
    if layer is not None:
        layer.on_read = None


def _is_trained(layer: Any) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _layers(model: nn.Module) -> Layers:
    return {name: module for name, module in model.named_modules() if isinstance(module, BoneLayer)}


def _input_embedding(model: Any) -> nn.Module | None:
    try:
        found: Any = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
