"""Memory and time of the streaming merge, against a plain copy and against loading the model.

    python benchmarks/streaming_merge.py FOLDER [--layers 20] [--variant bone] [--repeats 3] [--cold] [--no-load]

Makes a model of random bf16 weights (Llama-2-7B's shape with fewer layers, 8.6 GB at 20) and an adapter in FOLDER, then
runs each contestant in a process of its own, in turns (loading once). All of them end when their output is on the disk.
Before each run the base is read into the page cache, or with --cold dropped from it. Prints JSON. FOLDER needs three
times the model's size.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import typer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OPTIONS = {
    "bone": {"r": 64},
    "bat": {"r": 64, "init_weights": "bat"},
    "bat-input": {"r": 64, "init_weights": "bat", "share": "input"},
    "bottleneck": {"bottleneck_size": 64},
}


def main(
    folder: Path,
    layers: int = 20,
    variant: str = "bone",
    repeats: int = 3,
    load: bool = True,
    cold: bool = False,
    only: str = typer.Option("", hidden=True),
) -> None:
    if only:
        _timed(only, folder)
        return
    if not (folder / "base").exists():
        _make_base(folder, layers)
    _make_adapter(folder, variant)
    shards = sorted((folder / "base").glob("*.safetensors"))
    base_bytes = sum(shard.stat().st_size for shard in shards)
    runs: list[dict] = []
    for turn in range(repeats):
        for name in ("copy", "stream", *(["load"] if load and turn == 0 else [])):
            for shard in shards:
                _drop(shard) if cold else _read(shard)
            done = subprocess.run(
                [sys.executable, __file__, str(folder), "--only", name], check=True, capture_output=True, text=True
            )
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(runs[-1], file=sys.stderr)
    shutil.rmtree(folder / "out", ignore_errors=True)
    largest = max(2 * 32000 * 4096, 2 * 4096 * 11008)
    seconds = {
        name: statistics.median(run["seconds"] for run in runs if run["what"] == name) for name in ("copy", "stream")
    }
    found = {
        "variant": variant,
        "base_bytes": base_bytes,
        "base_in_page_cache": not cold,
        "memory_limit_gib": round(1 + 4 * largest / 2**30, 3),
        "stream_over_copy": round(seconds["stream"] / seconds["copy"], 2),
        "runs": runs,
    }
    print(json.dumps(found, indent=1))


def _read(file: Path) -> None:
    with open(file, "rb", buffering=0) as shard:
        while shard.read(2**20):
            pass


def _drop(file: Path) -> None:
    with open(file, "rb") as shard:
        os.posix_fadvise(shard.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _timed(name: str, folder: Path) -> None:
    start = time.perf_counter()
    run = {"copy": _copy, "stream": _stream, "load": _load}[name]()
    # Only now: a virtual machine takes back memory that is free for a second, and asks for it page by page.
    shutil.rmtree(folder / "out", ignore_errors=True)
    imported = time.perf_counter() - start
    start = time.perf_counter()
    run(folder)
    seconds = time.perf_counter() - start
    peak = _peak_bytes()
    found = {"seconds": seconds, "import_seconds": imported, "peak_gib": peak / 2**30}
    print(json.dumps({"what": name, **{key: round(value, 3) for key, value in found.items()}}))


def _peak_bytes() -> int:
    """Of this process since it began; ``ru_maxrss`` would have the parent's, who forked it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _copy() -> Callable[[Path], None]:
    """The floor: the same files, copied and on the disk."""

    def run(folder: Path) -> None:
        (folder / "out").mkdir()
        for file in (folder / "base").iterdir():
            shutil.copyfile(file, folder / "out" / file.name)
            with open(folder / "out" / file.name, "rb+") as copied:
                os.fsync(copied.fileno())

    return run


def _stream() -> Callable[[Path], None]:
    from bone_peft.cli.main import app

    import_module("bone_peft.files.merging")  # What the command imports when it runs.

    def run(folder: Path) -> None:
        names = ("--base", folder / "base", "--adapter", folder / "adapter", "--out", folder / "out")
        app(["merge", *map(str, names)], standalone_mode=False)

    return run


def _load() -> Callable[[Path], None]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import bone_peft  # noqa: F401

    def run(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder / "base")
        merged = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
        merged.save_pretrained(folder / "out")
        for file in (folder / "out").iterdir():
            with open(file, "rb+") as written:
                os.fsync(written.fileno())

    return run


def _config(layers: int) -> object:
    from transformers import LlamaConfig

    return LlamaConfig(vocab_size=32000, num_hidden_layers=layers, architectures=["LlamaForCausalLM"], dtype="bfloat16")


def _make_base(folder: Path, layers: int) -> None:
    """Random weights, written tensor by tensor."""
    import torch

    from bone_peft.files.checkpoints.outline import outline
    from bone_peft.files.checkpoints.rewrite import as_bytes
    from bone_peft.io.safetensors_file import header_bytes

    base = folder / "base"
    base.mkdir(parents=True)
    config = _config(layers)
    shapes = {name: tuple(t.shape) for name, t in outline(config).state_dict().items()}
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        if size + nbytes > 5e9:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    noise = torch.randn(2**24).mul_(0.02).to(torch.bfloat16)
    weight_map = {}
    for index, names in enumerate(groups, 1):
        file = base / f"model-{index:05}-of-{len(groups):05}.safetensors"
        weight_map |= dict.fromkeys(names, file.name)
        with open(file, "wb") as out:
            out.write(header_bytes({n: (torch.bfloat16, shapes[n]) for n in names}, {"format": "pt"}))
            for name in names:
                left = torch.Size(shapes[name]).numel()
                while left:
                    piece = noise.roll(left % 8191)[:left]
                    out.write(as_bytes(piece).numpy())
                    left -= len(piece)
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    index_file = base / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    config.save_pretrained(base)  # type: ignore[attr-defined]


def _make_adapter(folder: Path, variant: str) -> None:
    import torch
    from transformers import AutoConfig

    from bone_peft import BoneConfig
    from bone_peft.files.adapters import Adapter, write_adapter
    from bone_peft.files.checkpoints.outline import outline, shape

    config = BoneConfig(target_modules=TARGETS, task_type="CAUSAL_LM", **OPTIONS[variant])
    model = outline(AutoConfig.from_pretrained(folder / "base"))
    shapes = {name: shape(model, name) for name, _ in model.named_modules() if name.endswith(tuple(TARGETS))}
    layers = {
        name: {key: torch.randn(size) * 0.01 for key, size in config.variant.shapes(shape[1], shape[0], 64).items()}
        for name, shape in shapes.items()
        if shape is not None
    }
    write_adapter(Adapter(config, layers), "bone", folder / "adapter", force=True)


if __name__ == "__main__":
    typer.run(main)
