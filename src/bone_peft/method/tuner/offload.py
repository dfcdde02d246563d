"""Reading tensors that Accelerate keeps on the CPU or the disk while their layer does not run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from torch import nn

_NOTHING = nullcontext()


def execution_device(module: nn.Module) -> torch.device | None:
    """Where ``module`` runs, if its tensors are there for no longer than that."""
    hook = vars(module).get("_hf_hook")
    if not isinstance(hook, AlignDevicesHook) or hook.execution_device is None:
        return None
    offloaded = any(parameter.is_meta for parameter in module.parameters(recurse=False))
    return torch.device(hook.execution_device) if offloaded else None


@contextmanager
def kept_where_it_is(model: Any) -> Iterator[None]:
    """While an adapter is loaded into a base that Accelerate has offloaded.

    PEFT would take the base's hooks away, and find a place for all of it anew.
    """
    places = vars(model).pop("hf_device_map", None)
    try:
        yield
    finally:
        if places is not None:
            model.hf_device_map = places


def is_offloaded(model: Any) -> bool:
    """Whether parts of ``model`` are elsewhere while they do not run."""
    return bool({"cpu", "disk"} & {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()})


def onloaded(*modules: nn.Module) -> AbstractContextManager[None]:
    """Bring the tensors of ``modules`` to the device where they are not there.

    Accelerate does so when a module is called; this is for modules that are read instead. A tensor that was taken out
    of a module stays valid afterwards. For modules without offloading this costs a dictionary look-up each.
    """
    hooked = [module for module in modules if "_hf_hook" in module.__dict__]
    return _onloaded(hooked) if hooked else _NOTHING


@contextmanager
def _onloaded(modules: list[nn.Module]) -> Iterator[None]:
    hooks = [
        (module, hook)
        for module in modules
        if isinstance(hook := vars(module)["_hf_hook"], AlignDevicesHook)
        and any(p.is_meta for p in module.parameters(recurse=False))
    ]
    for module, hook in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for module, hook in hooks:
            hook.post_forward(module, None)
