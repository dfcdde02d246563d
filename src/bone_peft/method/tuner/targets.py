"""Which modules can be adapted, and how the model around them uses them."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..compat.quantization import resolve_quantization_backend
from .attention import InProjection

_PLAIN = (nn.Linear.forward, Conv1D.forward)


def why_not(module: nn.Module) -> str | None:
    """Why no adapter can stand on ``module``, as the predicate of a sentence, or ``None`` if one can."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    backend = resolve_quantization_backend(base, get_apply_tensor_subclass=lambda: None)
    if getattr(backend, "layer_type", None) == "linear":
        return None
    if not isinstance(base, (nn.Linear, Conv1D)):
        return (
            f"is a {type(base).__name__}, and Bone adapts linear layers (torch.nn.Linear, Conv1D, or quantized; and "
            "torch.nn.MultiheadAttention whose query, key and value have one size): take it out of target_modules, or "
            "name it in exclude_modules"
        )
    if backend is None and type(base).forward not in _PLAIN and not _computes_what_linear_does(base):
        return (
            f"is a {type(base).__name__}, which computes something else than a linear layer (its result is no tensor, "
            "or not W x + b): take it out of target_modules, or name it in exclude_modules"
        )
    return None


@torch.no_grad()
def _computes_what_linear_does(layer: nn.Module) -> bool:
    """Try it: an own ``forward`` may still be ``W x + b``."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(weight, Tensor):
        return False
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, weight.shape[1], generator=random).to(weight.device, weight.dtype)
    try:
        y = layer(x)
        expected = F.linear(x, weight, bias)
        return isinstance(y, Tensor) and y.shape == expected.shape and (y.is_meta or torch.allclose(y, expected, 1e-2))
    except Exception:  # whatever it wants, it is not what a linear layer takes
        return False


@dataclass(frozen=True)
class Use:
    """How a model uses a layer.

    Attributes:
        read: its weight is taken, and multiplied by what the layer does not see.
        called: it is called.
        learns: some of this is within autograd.
    """

    read: bool
    called: bool
    learns: bool = True


def use_of(parent: nn.Module, name: str) -> Use:
    """How the code of ``parent`` uses its child ``name``, as far as it tells."""
    if isinstance(getattr(parent, name), InProjection):
        return Use(read=True, called=False)
    kind: Any = type(parent)
    found = {(use.is_call, use.learns) for use in _uses(kind) if use.name == name}
    read, called = any(not is_call for is_call, _ in found), any(is_call for is_call, _ in found)
    return Use(read, called or not read, learns=not found or any(learns for _, learns in found))


# Where weights are made, not used.
_SETUP = {"__init__", "reset_parameters", "_reset_parameters", "_init_weights", "init_weights", "extra_repr"}
# What of a weight tells nothing of its values.
_LABELS = {"dtype", "device", "shape", "size", "ndim", "dim", "numel", "is_cuda", "requires_grad", "is_meta", "data"}
_QUESTIONS = {"isinstance", "hasattr", "getattr", "type", "id"}


_WITHOUT_GRADIENT = {"no_grad", "inference_mode"}


@dataclass(frozen=True)
class _Mention:
    """``self.name(...)``, or else ``self.name.weight``; within autograd or not."""

    name: str
    is_call: bool
    learns: bool


@cache
def _uses(cls: Any) -> frozenset[_Mention]:
    """What the methods of ``cls`` do with its children."""
    found: set[_Mention] = set()
    for base in cls.__mro__:
        if not issubclass(base, nn.Module) or base is nn.Module:
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # made at run time, or without its source
            continue
        for method in ast.walk(tree):
            if isinstance(method, ast.FunctionDef) and method.name not in _SETUP:
                found.update(_mentions(method))
    return frozenset(found)


def _mentions(node: ast.AST, learns: bool = True) -> Iterator[_Mention]:
    if isinstance(node, ast.Attribute) and node.attr in _LABELS and _own_weight(node.value) is not None:
        return
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _QUESTIONS:
        return
    around: list[ast.expr] = []
    if isinstance(node, ast.FunctionDef):
        around = node.decorator_list
    elif isinstance(node, ast.With):
        around = [item.context_expr for item in node.items]
    learns = learns and not any(map(_is_without_gradient, around))
    weight = _own_weight(node)
    if weight is not None and isinstance(getattr(node, "ctx", None), ast.Load):
        yield _Mention(weight, is_call=False, learns=learns)
    if isinstance(node, ast.Call) and (name := _own(node.func)) is not None:
        yield _Mention(name, is_call=True, learns=learns)
    for child in ast.iter_child_nodes(node):
        yield from _mentions(child, learns)


def _is_without_gradient(expression: ast.expr) -> bool:
    """Whether it is ``torch.no_grad()``, or the like, as a decorator or after ``with``."""
    if isinstance(expression, ast.Call):
        return not expression.args and _is_without_gradient(expression.func)
    name = expression.attr if isinstance(expression, ast.Attribute) else getattr(expression, "id", "")
    return name in _WITHOUT_GRADIENT


def _own(node: Any) -> str | None:
    """``name`` if the node is ``self.name``."""
    is_own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if is_own else None


def _own_weight(node: Any) -> str | None:
    """``name`` if the node is ``self.name.weight``."""
    return _own(node.value) if isinstance(node, ast.Attribute) and node.attr == "weight" else None


def why_not_in(model: Any, key: str) -> str | None:
    """Why this model does not let the layer ``key`` be adapted, likewise."""
    config = getattr(model, "config", None)
    rescaled = getattr(config, "model_type", None) == "rwkv" and getattr(config, "rescale_every", 0) > 0
    if rescaled and key.endswith((".attention.output", ".feed_forward.value")):
        return (
            "is a layer whose weight Transformers' RWKV-4 halves in evaluation, and it would not halve the adapter: "
            "set model.config.rescale_every = 0 first"
        )
    return None


def trained_whole(config: Any, key: str) -> str | None:
    """Why the layer ``key`` needs no adapter, likewise: PEFT trains all whose names end so."""
    whole = next((name for name in config.modules_to_save or () if key.endswith(name)), None)
    if whole is None:
        return None
    return f"is trained whole, since its name ends with {whole!r} of modules_to_save: name it in exclude_modules"


def also_excluded(exclude_modules: Any, names: Iterable[str]) -> Any:
    """``exclude_modules`` of a config, a set or a regular expression, with these modules as well."""
    if isinstance(exclude_modules, str):
        return "|".join((f"(?:{exclude_modules})", *map(re.escape, names)))
    return {*(exclude_modules or ()), *names}
