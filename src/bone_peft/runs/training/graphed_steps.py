"""Forward and backward of a step as one CUDA graph: the GPU works through it without waiting for Python.

A graph is of one shape. Shapes are few (``padding_free.collator``), and each is recorded when it comes again.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bone_peft.io.names import brief
from bone_peft.method.ops.dispatch import hosts_time_is_free

from .completion_loss import completion_loss
from .padding_free import in_other_rows
from .same_step import same_step

_MOST = 32
"""Graphs. Some MiB each; steps of further shapes are computed as they are without."""


def lengths_that_pay(lines: int) -> int:
    """How many lengths of lines there should be between each power of two and the next, for so many lines in all.

    Twice as many halve what is added to lines, which for 4 is a twelfth of a step on average. Meeting and recording a
    length takes as long as some ten steps, and with twice as many some five more are met.
    """
    return 4 if lines < 800 else 8 if lines < 5000 else 16


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Any]
    scale: Tensor
    loss: Tensor
    sums: Tensor


class GraphedSteps:
    """Steps of one model. The gradients are added up in tensors of their own, which become the parameters' ``grad``.

    Args:
        model: on a GPU, called as :func:`completion_loss` does.

    Attributes:
        fault: why steps cannot be recorded, in words; None as long as they can.
    """

    def __init__(self, model: Any) -> None:
        self.fault: str | None = _draws_in_python(model)
        self._model = model
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._places = self._places_now()
        self._grads: list[Tensor] = []
        self._met: set[Any] = set()
        self._graphs: dict[Any, _Graph] = {}

    def step(self, batch: dict[str, Any], scale: Tensor | float) -> tuple[Tensor, Tensor] | None:
        """Loss times ``scale`` and the sums of :func:`completion_loss`; None, and nothing done, if there is a fault.

        The gradient of the loss times ``scale`` is added to the parameters'.
        """
        shape = _shape(batch)
        try:
            if self._graphs and self._places_now() != self._places:
                self._give_up("the optimizer moves the weights")
            elif self.fault is None and shape in self._met and shape not in self._graphs and len(self._graphs) < _MOST:
                self._record(shape, batch)
            if self.fault is not None:
                return None
            if shape not in self._graphs:
                self._met.add(shape)  # its kernels are compiled and loaded here, which cannot be recorded
                return self._compute(batch, scale)
        except torch.OutOfMemoryError:
            self._give_up("they take more memory than there is")
            return None
        except Exception as error:  # what cannot be recorded fails in the words of whoever does it
            self._give_up(brief(error))
            return None
        self._take_gradients()
        recorded = self._graphs[shape]
        _replay(recorded, batch, scale)
        return recorded.loss.clone(), recorded.sums.clone()

    def _compute(self, batch: dict[str, Any], scale: Tensor | float) -> tuple[Tensor, Tensor]:
        with hosts_time_is_free():
            loss, sums, grads = self._loss_and_gradients(batch, scale)
        self._take_gradients()
        torch._foreach_add_(self._grads, grads)
        return loss, sums

    def _loss_and_gradients(self, batch: dict[str, Any], scale: Tensor | float) -> tuple[Tensor, Any, Any]:
        loss, sums = completion_loss(self._model, batch, wanted=True)
        loss = loss * scale
        return loss.detach(), sums, torch.autograd.grad(loss, self._parameters)

    def _take_gradients(self) -> None:
        """Go on from what the parameters have: nothing, what is here, or what somebody else has left."""
        if not self._grads:
            self._grads = [torch.zeros_like(parameter) for parameter in self._parameters]
        before = [parameter.grad for parameter in self._parameters]
        if before[0] is self._grads[0]:
            return
        torch._foreach_zero_(self._grads)
        for parameter, old, grad in zip(self._parameters, before, self._grads, strict=True):
            if old is not None:
                grad.copy_(old)
            parameter.grad = grad

    def _record(self, shape: Any, batch: dict[str, Any]) -> None:
        inputs = {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch.items()}
        scale = torch.ones((), device=inputs["input_ids"].device)
        first = next(iter(self._graphs.values()), None)
        self._graphs[shape] = self._recorded(inputs, scale, first)
        if first is None:
            self._check(self._graphs[shape], in_other_rows(batch))

    def _recorded(self, inputs: dict[str, Any], scale: Tensor, first: _Graph | None) -> _Graph:
        graph = torch.cuda.CUDAGraph()
        pool = None if first is None else first.graph.pool()  # the memory of one serves all
        with hosts_time_is_free(), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            loss, sums, grads = self._loss_and_gradients(inputs, scale)
            torch._foreach_add_(self._grads, grads)
            del grads
        return _Graph(graph, inputs, scale, loss, sums)

    def _check(self, recorded: _Graph, batch: dict[str, Any]) -> None:
        """Whether a recorded step computes what the model does, for a batch that it was not recorded with."""
        kept = [grad.clone() for grad in self._grads]
        devices = [recorded.scale.device] if recorded.scale.is_cuda else []
        with torch.random.fork_rng(devices):
            expected = self._loss_and_gradients(batch, 1.0)
        torch._foreach_zero_(self._grads)
        with torch.random.fork_rng(devices):
            _replay(recorded, batch, 1.0)
        if not same_step([recorded.loss, *self._grads], [expected[0], *expected[2]]):
            self._give_up("a recorded step is not what the model computes")
        torch._foreach_copy_(self._grads, kept)

    def _places_now(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self._parameters]

    def _give_up(self, why: str) -> None:
        self.fault = why
        self._graphs = {}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        gc.collect()  # what was computed is still held in its autograd functions


def _replay(recorded: _Graph, batch: dict[str, Any], scale: Tensor | float) -> None:
    for name, value in batch.items():
        if isinstance(value, Tensor):
            recorded.inputs[name].copy_(value, non_blocking=True)
    recorded.scale.fill_(scale)
    recorded.graph.replay()


def _shape(batch: dict[str, Any]) -> Any:
    return tuple((n, tuple(v.shape) if isinstance(v, Tensor) else v) for n, v in sorted(batch.items()))


def _draws_in_python(model: Any) -> str | None:
    """Layers that are left out at random: which ones would be recorded with them."""
    config = model.config.to_dict()
    drops = [name for name, value in config.items() if name.replace("_", "").endswith("layerdrop") and value]
    return f"{drops[0]} leaves out other layers in each step" if drops else None
