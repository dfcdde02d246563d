"""Modules of experts some of whose parameters are layers, and back."""

from __future__ import annotations

import inspect
from functools import cache
from types import MethodType
from typing import Any

from torch import Tensor, nn

from .kinds import KINDS, kind_of


class _WithLayers(nn.Module):
    """A module of experts whose parameters are layers."""

    kind: Any

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs:
            bound = inspect.signature(_original(self).forward).bind(self, *args, **kwargs)
            args = tuple(bound.arguments.values())[1:]
        return self.kind.run(self, *args)

    def __reduce__(self) -> Any:
        # The class is made here, and has no place to be found at.
        return _restored, (_original(self), KINDS.index(self.kind)), self.__dict__


def _original(module: nn.Module) -> Any:
    """The model's own class."""
    return type(module).__mro__[2]


def _restored(cls: Any, kind: int) -> nn.Module:
    made = _with_layers(cls, KINDS[kind])
    return made.__new__(made)


@cache
def _with_layers(cls: Any, kind: Any) -> type[nn.Module]:
    return type(cls.__name__, (_WithLayers, cls), {"__module__": cls.__module__, "kind": kind})


def unfold(module: nn.Module, kind: Any) -> None:
    """Make the parameters of these experts layers."""
    layers: dict[str, nn.Module] = kind.projections(module)
    module.__dict__["_bone_order"] = list(module._parameters)
    module.__dict__["_bone_names"] = list(layers)
    for name, layer in layers.items():
        del module._parameters[name]
        module._parameters.pop(f"{name}_bias", None)
        module.add_module(name, layer)
    original: Any = type(module)
    module.__class__ = _with_layers(original, kind)
    _bind_forward(module)


def _bind_forward(module: nn.Module) -> None:
    """Accelerate keeps the forward that its hook goes around, of the class that the module was of."""
    if "_old_forward" in module.__dict__:
        module.__dict__["_old_forward"] = MethodType(type(module).forward, module)


def unfold_all(model: nn.Module) -> None:
    """Make the parameters of all experts in ``model`` layers."""
    for module in model.modules():
        if not is_unfolded(module) and (kind := kind_of(module)) is not None:
            unfold(module, kind)


def is_unfolded(module: nn.Module) -> bool:
    """Whether :func:`unfold` was called on it."""
    return isinstance(module, _WithLayers)


def layers_of(module: nn.Module) -> list[nn.Module]:
    """What stands in the place of its parameters."""
    return [module._modules[name] for name in vars(module)["_bone_names"]]  # type: ignore[misc]


def fold(module: nn.Module) -> None:
    """Make the layers parameters again. None of them carries an adapter."""
    found: dict[str, Any] = {}
    for name in module.__dict__.pop("_bone_names"):
        layer = module._modules.pop(name)
        assert layer is not None
        found[name] = layer._parameters["weight"]
        if layer._parameters["bias"] is not None:
            found[f"{name}_bias"] = layer._parameters["bias"]
    module.__class__ = _original(module)
    _bind_forward(module)
    order = module.__dict__.pop("_bone_order")
    module._parameters.update(found)
    rest = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({name: rest.pop(name) for name in order if name in rest} | rest)
