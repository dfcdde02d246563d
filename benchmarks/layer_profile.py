"""Which kernels a training step runs, and how long: the floor's beside the contestants'. Needs a GPU.

    python benchmarks/layer_profile.py [--shape llama2-7b --layers 4] [--what bone --what bat] [--compiled]

Microseconds and launches of a step over the number of layers, embedding and head included (they are the same for all).
``gpu`` is the sum of the kernels. ``idle`` is the time between them, and ``host`` the part of it in which the next
kernel was not launched yet. ``step`` is a step's time without the profiler. Weights are random. Prints tables;
``--json FILE`` keeps the numbers.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from bone_peft.costs.bench.contestants import FLOOR, Setting
from bone_peft.costs.bench.machine import describe, timed
from bone_peft.costs.bench.shapes import random_model
from bone_peft.costs.bench.training_step import Regime, allow_recompiles, make_batch, make_step

KINDS = {
    "compiler's": ("triton_",),
    "matrix products": ("gemm", "nvjet", "cutlass", "splitK", "cublas", "gemv"),
    "attention": ("flash", "fmha", "cudnn"),
    "optimizer": ("multi_tensor", "Adam"),
    "clearing and copying": ("Memset", "Memcpy", "fill", "Fill"),
}
"""Of which kind a kernel is: the first that has a part of its name."""

OURS = (
    "_block_sum",
    "_add_to_blocks",
    "_product",
    "_bone_token",
    "_bat_weight",
    "_transform",
    "_add_grouped_bone",
    "_grouped_bone",
    "_token_sums",
)


def main(
    what: Annotated[list[str], typer.Option(default_factory=lambda: ["bone"], show_default="bone")],
    shape: str = "llama2-7b",
    layers: int = 4,
    batch: int = 4,
    length: int = 1024,
    r: int = 64,
    target: Annotated[list[str] | None, typer.Option()] = None,
    compiled: bool = False,
    steps: int = 10,
    top: int = 25,
    out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    if compiled:
        allow_recompiles()
    regime = Regime(shape, layers, batch, length, compiled=compiled)
    setting = Setting(target or "all-linear", r)
    base = random_model(shape, layers, regime.dtype, regime.device)
    inputs = make_batch(base, regime)
    found = {}
    for name in [FLOOR, *what]:
        step, _ = make_step(name, base, inputs, regime, setting)
        for _ in range(4):
            step()
        spans = timed(step, "cuda", 3 * steps)[steps:]
        found[name] = {"step": 1e3 * median(spans) / layers, **_kernels(step, steps, layers)}
    _print(found, top)
    if out is not None:
        machine = {key: value for key, value in describe("cuda").items() if key != "command"}
        model = {"shape": shape, "layers": layers, "compiled": compiled}
        settings = model | {"batch": batch, "length": length, "r": r, "target": target, "steps": steps}
        result = {"machine": machine, "settings": settings, "contestants": {c: _short(row) for c, row in found.items()}}
        out.write_text(json.dumps(result, indent=1) + "\n")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Rounded, with kernels of nearly one name added up, and without gaps of less than a microsecond."""
    kernels: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, (us, launches) in row["kernels"].items():
        kernels[name[:100]][0] += us
        kernels[name[:100]][1] += launches
    tables = {"kernels": kernels, "gaps": {name: gap for name, gap in row.get("gaps", {}).items() if gap[0] >= 1}}
    numbers = {key: round(value, 1) for key, value in row.items() if key not in tables}
    return numbers | {
        title: {name: [round(us, 2), round(n, 3)] for name, (us, n) in table.items()} for title, table in tables.items()
    }


def _kernels(step: Any, steps: int, layers: int) -> dict[str, Any]:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    share = steps * layers
    kernels: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    gaps: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    idle = host = end = 0.0
    last = ""
    for name, start, duration, launched in _timeline(recorded):
        kernels[name][0] += duration / share
        kernels[name][1] += 1 / share
        if end and start > end:
            idle += (start - end) / share
            host += max(0.0, min(start, launched) - end) / share
            gaps[f"{last[:60]} -> {name[:60]}"][0] += (start - end) / share
            gaps[f"{last[:60]} -> {name[:60]}"][1] += 1 / share
        end, last = max(end, start + duration), name
    return {"gpu": sum(us for us, _ in kernels.values()), "idle": idle, "host": host, "kernels": kernels, "gaps": gaps}


def _timeline(recorded: Any) -> list[tuple[str, float, float, float]]:
    """Name, start, duration and launch of each kernel, in microseconds, in the order of their starts."""
    with TemporaryDirectory() as folder:
        recorded.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text())["traceEvents"]
    launches = {
        event["args"]["correlation"]: event["ts"] + event["dur"]
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    kernels.sort(key=lambda event: event["ts"])
    return [(e["name"], e["ts"], e["dur"], launches.get(e["args"]["correlation"], 0.0)) for e in kernels]


def _kind(kernel: str) -> str:
    if kernel.startswith(OURS):
        return "Bone's"
    return next((kind for kind, parts in KINDS.items() if any(part in kernel for part in parts)), "PyTorch's others")


def _print(found: dict[str, Any], top: int) -> None:
    kinds: dict[str, dict[str, list[float]]] = defaultdict(dict)
    names: dict[str, float] = defaultdict(float)
    for contestant, row in found.items():
        for kernel, (us, launches) in row["kernels"].items():
            total = kinds[_kind(kernel)].setdefault(contestant, [0.0, 0.0])
            total[0] += us
            total[1] += launches
            names[kernel] = max(names[kernel], us)
    console = Console(width=200)
    rows = {kind: [kinds[kind].get(c, [0.0, 0.0]) for c in found] for kind in kinds}
    rows["gpu"] = [[row["gpu"], sum(n for _, n in row["kernels"].values())] for row in found.values()]
    for name in ("idle", "host", "step"):
        rows[name] = [[row[name], 0.0] for row in found.values()]
    _table(console, "By kind", list(found), rows)
    widest = sorted(names, key=lambda kernel: -names[kernel])[:top]
    kernels = {k: [row["kernels"].get(k, [0.0, 0.0]) for row in found.values()] for k in widest}
    _table(console, "By kernel", list(found), kernels)
    for contestant, row in found.items():
        widest = sorted(row["gaps"], key=lambda gap: -row["gaps"][gap][0])[: top // 2]
        _table(console, f"Gaps, {contestant}", [contestant], {gap: [row["gaps"][gap]] for gap in widest})


def _table(console: Console, title: str, contestants: list[str], rows: dict[str, list[list[float]]]) -> None:
    table = Table("us a layer (launches)", *contestants, title=title)
    for name, cells in rows.items():
        table.add_row(name[:110], *(f"{us:.1f} ({launches:.1f})" if us else "" for us, launches in cells))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
