"""Hooks that PyTorch calls on every module. Newer versions have a function of their own for this."""

from torch.nn.modules import module


def has_any_global_hook() -> bool:
    return bool(
        module._global_backward_pre_hooks
        or module._global_backward_hooks
        or module._global_forward_hooks
        or module._global_forward_pre_hooks
    )
