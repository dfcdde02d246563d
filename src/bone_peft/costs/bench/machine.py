"""Where a benchmark ran, and its clock and memory gauge."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch


def describe(device: str) -> dict[str, Any]:
    """Machine, versions and command, for the stored results."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "gpu": gpu,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "bone-peft")},
        "commit": _commit(),
        "command": " ".join(["bone", "bench", *_arguments()]),
    }


def _commit() -> str | None:
    """The last one of this package's code, where that lies in a checkout. Another project's may lie around it."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parents[2]), "log", "-1", "--format=%h", "--", "."],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _arguments() -> list[str]:
    """The command's own arguments, without places on the machine."""
    for number, word in enumerate(sys.argv):
        if word in ("train", "infer", "run"):
            return [Path(word).name if word.startswith("/") else word for word in sys.argv[number:]]
    return []


def timed(run: Callable[[], Any], device: str, times: int) -> list[float]:
    """Milliseconds of each of ``times`` runs."""
    if device == "cuda":
        return _timed_on_gpu(run, times)
    spans = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        spans.append(1e3 * (time.perf_counter() - start))
    return spans


def _timed_on_gpu(run: Callable[[], Any], times: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in pairwise(marks)]
