"""Runs a program that refuses to start without a GPU: ``python without_gpu.py PROGRAM ARGUMENT...``.

For programs that ask PEFT for their device: they are told "cpu" by a name that takes itself for "xpu".
"""

import runpy
import sys

import peft.utils
import torch


class _Cpu(str):
    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return other in {"cpu", "xpu"}


def main() -> None:
    peft.utils.infer_device = lambda: _Cpu("cpu")
    for name in ("max_memory_reserved", "memory_allocated", "memory_reserved", "reset_peak_memory_stats"):
        setattr(torch.cpu, name, lambda: 0)
    torch.cpu.empty_cache = lambda: None  # type: ignore[attr-defined]
    torch.cpu.manual_seed_all = torch.manual_seed  # type: ignore[attr-defined]
    torch.cpu.get_device_name = lambda _: "cpu"  # type: ignore[attr-defined]
    sys.argv = sys.argv[1:]
    sys.path[0] = "."
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
