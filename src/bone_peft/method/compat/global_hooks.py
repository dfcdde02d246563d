"""Hooks that PyTorch calls on every module. PyTorch 2.6 asks for them in a line of its own code."""

from torch.nn.modules import module

try:
    from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook
except ImportError:

    def has_any_global_hook() -> bool:
        return bool(
            module._global_backward_pre_hooks
            or module._global_backward_hooks
            or module._global_forward_hooks
            or module._global_forward_pre_hooks
        )


__all__ = ["has_any_global_hook"]
