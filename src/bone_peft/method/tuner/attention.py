"""``nn.MultiheadAttention``: its projections of query, key and value are one parameter of it, and no layer."""

from __future__ import annotations

from typing import Any

from torch import nn

_IN, _OUT = "in_proj", "out_proj"
_WEIGHT = "in_proj_weight"


class InProjection(nn.Linear):
    """That parameter as a layer: ``weight (3 * embed_dim, embed_dim)``. It is read, and never called."""

    def __init__(self, weight: Any) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        # Not as an attribute: PEFT loads adapters while whatever is registered goes to the meta device.
        self._parameters["weight"] = weight


class _WithLayer(nn.MultiheadAttention):
    """An attention whose projection is a layer."""

    @property
    def in_proj_weight(self) -> Any:  # type: ignore[override]
        layer: Any = self.in_proj
        return layer.weight


def has_in_projection(module: nn.Module) -> bool:
    """Whether query, key and value are one parameter of ``module``."""
    attention: Any = module
    return type(module) in (nn.MultiheadAttention, _WithLayer) and bool(attention._qkv_same_embed_dim)


def projections(attention: nn.Module) -> dict[str, nn.Module]:
    """The layers into it and out of it, by name. The first is made if there is none yet."""
    if not isinstance(attention, _WithLayer):
        weight = attention._parameters[_WEIGHT]
        attention._parameters[_WEIGHT] = None  # Its place among the parameters is kept.
        attention.add_module(_IN, InProjection(weight))
        attention.__class__ = _WithLayer
    return {name: attention.get_submodule(name) for name in (_IN, _OUT)}


def put_back(attention: nn.Module, layer: InProjection) -> None:
    """Make the layer a parameter again."""
    delattr(attention, _IN)
    attention.__class__ = nn.MultiheadAttention
    weight: Any = layer.weight
    attention._parameters[_WEIGHT] = weight
