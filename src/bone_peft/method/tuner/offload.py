"""Reading tensors that Accelerate keeps on the CPU or the disk while their layer does not run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from accelerate.hooks import AlignDevicesHook
from torch import nn

_NOTHING = nullcontext()


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
