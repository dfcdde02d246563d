"""Launching a Triton kernel on the device of its tensors, at little cost to the host.

Triton looks at every argument on every launch to find the binary that fits. In a layer of a few microseconds that is
what takes the time, so the binaries found are kept here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_binaries: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: tuple[Tensor, ...],
    sizes: tuple[int, ...],
    constants: tuple[Any, ...],
    num_warps: int = 4,
    num_stages: int = 3,
) -> None:
    """Run ``kernel``.

    Args:
        kernel: a function under ``triton.jit`` whose parameters are, in this order, those of the next three.
        grid: number of programs along up to three axes.
        tensors: all on one device.
        sizes: integers that may differ from call to call.
        constants: what the kernel is compiled for.
        num_warps, num_stages: as in Triton.
    """
    device = tensors[0].device
    if device.type != "cuda":  # Triton's interpreter.
        kernel[grid](*tensors, *sizes, *constants)
        return
    if device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(kernel, grid, tensors, sizes, constants, num_warps, num_stages)
        return
    # All that Triton tells binaries apart by, and no less.
    key = (
        id(kernel),
        device.index,
        constants,
        num_warps,
        num_stages,
        *[(t.dtype, t.data_ptr() % 16 == 0) for t in tensors],
        *[(n == 1, n % 16 == 0, n < 1 << 31) for n in sizes],
    )
    binary = _binaries.get(key)
    if binary is None:
        _binaries[key] = kernel[grid](*tensors, *sizes, *constants, num_warps=num_warps, num_stages=num_stages)
        return
    binary[(*grid, 1, 1)[:3]](*tensors, *sizes, *constants)
