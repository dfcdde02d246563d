"""``estimate``: the costs of all methods for one model, side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from torch import nn

from bone_peft.errors import BoneError
from bone_peft.files.bases.load_base import QUANTIZE
from bone_peft.files.checkpoints.outline import fused, shape
from bone_peft.method import BoneConfig, BoneLayer, BoneModel

from .memory import base_bytes, saved_bytes
from .methods import METHODS, Layers, Method, Shape
from .models import empty
from .recommended import Recommended, recommended

OWN = "this recipe"
SIZES = {"Bone": 64, "Bat": 64, "Bat, input-shared": 64, "LoRA": 32}


@dataclass(frozen=True)
class Cost:
    """What one method costs.

    Attributes:
        method: its name.
        size: ``r``, or the width of the bottleneck.
        trainable: parameters.
        share: of the base's parameters.
        file_bytes: of the saved adapter's tensors.
        optimizer_bytes: AdamW's two moments, in float32.
        training_bytes: base, adapter, its gradients, optimizer and what a step keeps; ``None`` if not known.
        refusal: why this model cannot have it, or ``None``.
    """

    method: str
    size: int
    trainable: int = 0
    share: float = 0.0
    file_bytes: int = 0
    optimizer_bytes: int = 0
    training_bytes: int | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Estimate:
    """What all methods cost for a model.

    Attributes:
        model: its name.
        parameters: of the base.
        layers: the shape of each adapted module.
        costs: one for each method.
        settings: the Bottleneck settings that are recommended for this size of model.
        base_bytes: of the frozen base's parameters.
    """

    model: str
    parameters: int
    layers: Layers
    costs: list[Cost]
    settings: Recommended
    base_bytes: int

    def curve(self, method: str, sizes: list[int]) -> list[tuple[int, int]]:
        """``(size, trainable parameters)`` where the method allows the size."""
        chosen = METHODS[method]
        return [(size, chosen.count(self.layers, size)) for size in sizes if chosen.why_not(self.layers, size) is None]


def estimate(
    model: str,
    *,
    target_modules: list[str] | str | None = "all-linear",
    sizes: Mapping[str, int] | None = None,
    adapter: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    quantize: str = "none",
    adapter_dtype: torch.dtype = torch.float32,
    batch: int = 1,
    length: int = 1024,
    memory: bool = True,
    trust_remote_code: bool = False,
) -> Estimate:
    """Count and add up what each method would cost. Nothing is loaded or allocated.

    Args:
        model: a known name, a model folder, a hub name, a GGUF file or RWKV's ``.pth`` file.
        target_modules: as for ``BoneConfig``.
        sizes: ``r`` by method (for Bottleneck: its width). By default 64 for Bone and Bat, 32 for LoRA, and for
            Bottleneck what is recommended for the model's size.
        adapter: options of a ``BoneConfig`` of one's own, whose cost stands first, as ``OWN``.
        dtype: of the base.
        quantize: ``"none"``, ``"8bit"`` or ``"4bit"``: of the base's linear layers, as bitsandbytes keeps them.
        adapter_dtype: of the adapter, in training and in its file.
        batch, length: rows and tokens of a training step, without gradient checkpointing.
        memory: whether to work out ``training_bytes``; that takes seconds for large models.
        trust_remote_code: run the Python code that the model brings along, if it has some.

    Raises:
        BoneError: no such model, a method that there is not, a size below 1, or options that no adapter has.
    """
    if quantize not in QUANTIZE:
        raise BoneError(f"quantize {quantize!r} is unknown; choose one of {', '.join(QUANTIZE)}.")
    shape: Any = empty(model, dtype, trust_remote_code=trust_remote_code)
    parameters = sum(parameter.numel() for parameter in shape.parameters())
    if not parameters:
        raise BoneError(f"{model} asks for a model without parameters: is its config damaged?")
    settings = recommended(parameters)
    wanted = SIZES | {"Bottleneck": round(settings.size[0] * settings.alpha[0])} | dict(sizes or {})
    unknown = set(wanted) - set(METHODS)
    if unknown or any(size < 1 for size in wanted.values()):
        raise BoneError(f"Sizes have to be at least 1, for {', '.join(METHODS)}: {wanted} is not.")
    layers = _layers(shape, target_modules)

    frozen = base_bytes(shape, dtype, quantize)

    def cost(name: str, size: int, trainable: int, tuning: Any) -> Cost:
        step = saved_bytes(shape, tuning, adapter_dtype, batch, length) if memory else None
        # The backward of the loss holds the gradient of the logits twice, in float32 and in the base's type.
        logits = batch * length * shape.config.get_text_config().vocab_size * (4 + dtype.itemsize)
        fixed = frozen + trainable * (2 * adapter_dtype.itemsize + 8) + logits
        return Cost(
            name,
            size,
            trainable,
            trainable / parameters,
            trainable * adapter_dtype.itemsize,
            trainable * 8,
            None if step is None else fixed + step,
        )

    def cost_of(method: Method, size: int) -> Cost:
        why_not = method.why_not(layers, size)
        if why_not is not None:
            return Cost(method.name, size, refusal=why_not)
        return cost(method.name, size, method.count(layers, size), method.config(size, list(layers)))

    costs = [cost_of(method, wanted[name]) for name, method in METHODS.items()]
    if adapter is not None:
        own = BoneConfig(**adapter)
        costs.insert(0, cost(OWN, getattr(own, own.variant.size_field), _trainable(shape, own), own))
    return Estimate(model, parameters, layers, costs, settings, frozen)


def _trainable(model: nn.Module, config: BoneConfig) -> int:
    """Parameters that PEFT would train."""
    try:
        tuned = get_peft_model(copy.deepcopy(model), config, low_cpu_mem_usage=True)
    except ValueError as error:
        raise BoneError(f"These options of the adapter do not fit the model: {error}") from None
    return sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)


def _layers(model: nn.Module, target_modules: list[str] | str | None) -> dict[str, Shape]:
    """The layers that PEFT would adapt."""
    options: dict[str, Any] = {"r": 1, "target_modules": target_modules}
    try:
        tuned = BoneModel(copy.deepcopy(model), BoneConfig(**options), "default", low_cpu_mem_usage=True)
    except ValueError as error:
        raise BoneError(f"These target_modules do not fit the model: {error}") from None
    names = [name for name, module in tuned.model.named_modules() if isinstance(module, BoneLayer)]
    return {name: shape for name in names if (shape := _shape(model, name)) is not None}


def _shape(model: nn.Module, name: str) -> Shape | None:
    if (experts := fused(model, name)) is not None:
        return Shape(experts.out_features, experts.in_features, experts.experts, len(experts.parts))
    sides = shape(model, name)
    return None if sides is None else Shape(*sides)
