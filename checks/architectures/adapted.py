"""A tiny model with an adapter on every linear layer that takes one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from bone_peft import BoneConfig, BoneLayer

from .bare import Usage, run
from .inputs import Inputs

Values = dict[str, list[Tensor]]


class Adapted:
    """What is tried, and what it is compared with.

    Args:
        base: the bare model; it is left alone.
        inputs: what it reads.
        usage: which of its layers it uses.
        config: how it is adapted.

    Attributes:
        model: an adapted copy of ``base``, in its mode.
        before: what ``base`` computes.
        start: what ``model`` computes before anything is trained.
        layers: the adapted layers by their name in ``base``.
        tensors: the trained tensors of each of them.
        frozen: copies of all parameters that are not trained.
        warnings: what was said while the adapters were put in.

    Raises:
        BoneError: if the model is refused, at once or when it runs or trains for the first time.
    """

    def __init__(self, base: PreTrainedModel, inputs: Inputs, usage: Usage, config: BoneConfig) -> None:
        self.base, self.inputs, self.usage, self.config = base, inputs, usage, config
        with torch.no_grad():
            self.before = run(base, inputs)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = get_peft_model(copy.deepcopy(base), config)
        self.warnings = [str(warning.message) for warning in said]
        self.model: PeftModel = model.train(base.training)
        modules = model.base_model.model.named_modules()
        self.layers = {name: module for name, module in modules if isinstance(module, BoneLayer)}
        self.tensors: Values = {
            name: [p for n, p in layer.named_parameters() if n.startswith("bone_")]
            for name, layer in self.layers.items()
        }
        self.frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
        self._start = self.values()
        with torch.no_grad():
            self.start = self.run()
        with self.training():
            self.run()

    def run(self) -> Tensor:
        return run(self.model, self.inputs)

    @contextmanager
    def training(self) -> Iterator[None]:
        """What a model keeps of the batches that it is trained on is forgotten after."""
        kept = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self.model.train()
        try:
            yield
        finally:
            self.model.train(self.base.training)
            for name, buffer in self.model.named_buffers():
                buffer.copy_(kept[name])

    def used(self) -> list[str]:
        """The adapted layers that the bare model uses: nothing can be asked of the others."""
        return sorted(set(self.layers) & self.usage.used)

    def values(self) -> Values:
        return {name: [tensor.detach().clone() for tensor in own] for name, own in self.tensors.items()}

    @torch.no_grad()
    def put(self, values: Values) -> None:
        """Give the trained tensors these values."""
        for name, own in self.tensors.items():
            for tensor, value in zip(own, values[name], strict=True):
                tensor.copy_(value)

    @torch.no_grad()
    def fill(self, *names: str, std: float) -> None:
        """Give the named layers' adapters (no name: all) random values, and the others those of the start."""
        self.put(self._start)
        random = torch.Generator().manual_seed(3)
        for name in names or self.tensors:
            for tensor in self.tensors[name]:
                tensor.copy_(torch.randn(tensor.shape, generator=random).to(tensor) * std)
