"""An RWKV-6 of World 1.6B's size, from a new model to the merged file, in RWKV's own program: is it the same model?

    python -m checks.rwkv_real_size [--width 2048] [--layers 24] [--steps 4]

A model is initialised as its authors do it, trained a little by ``bone train`` (Bone, r=64, all matrices), and merged
by ``bone merge``, all in float32. Then the logits of the adapted model are compared with those of the merged file in
the package ``rwkv``, and the base's beside them. Each part is a process of its own, so that no two models are in
memory at once. Exits with 1 if they are further apart than 1e-4 of the largest logit. 13 GB of disk, 16 GB of memory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import typer

_TOLERANCE = 1e-4
_IDS = list(range(300, 348))


def main(width: int = 2048, layers: int = 24, steps: int = 4) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base, adapter, merged = (str(folder / name) for name in ("base.pth", "run/adapter", "merged.pth"))
        _part("make", base, str(width), str(layers))
        _write_rows(folder / "rows.jsonl", 2 * steps)
        told = {"r": 64, "lr": 1e-3, "steps": steps, "batch-size": 2, "max-length": 48, "data": folder / "rows.jsonl"}
        options = [word for name, value in told.items() for word in (f"--{name}", str(value))]
        _bone("train", "--base", base, "--out", str(folder / "run"), "--no-bf16", *options)
        _bone("merge", "--base", base, "--adapter", adapter, "--out", merged)
        for kind, *files in (("ours", base, adapter), ("theirs", base), ("theirs", merged)):
            _part(kind, str(folder / f"{Path(files[-1]).stem}.logits"), *files)
        before, adapted, after = (
            torch.load(folder / f"{name}.logits", weights_only=True) for name in ("base", "adapter", "merged")
        )
    apart, moved = (float((logits - adapted).abs().max() / adapted.abs().max()) for logits in (after, before))
    print(f"RWKV-6, {layers} layers of width {width}, float32, {steps} steps of Bone r=64, {len(_IDS)} tokens:")
    print(f"the merged file in the rwkv package differs from the adapted model by {apart:.1e} of the largest logit,")
    print(f"the base by {moved:.1e}")
    if not apart < _TOLERANCE < moved:
        raise SystemExit(1)


def _bone(*arguments: str) -> None:
    _run("-m", "bone_peft", *arguments)


def _part(*arguments: str) -> None:
    _run("-m", __name__ if __name__ != "__main__" else "checks.rwkv_real_size", *arguments)


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def _write_rows(path: Path, count: int) -> None:
    draw = random.Random(0)
    rows = ({"text": f"User: {draw.randint(1, 999)}\n\nAssistant: the next is one more" * 4} for _ in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _make(path: str, width: str, layers: str) -> None:
    """Away from its initial values, which have zeros in places: each tensor matters."""
    from bone_peft.rwkv.fresh_x060 import fresh_model
    from bone_peft.rwkv.pth_model import save_model

    torch.manual_seed(0)
    model = fresh_model(int(width), int(layers))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    save_model(model, path)


@torch.no_grad()
def _ours(out: str, base: str, adapter: str) -> None:
    from bone_peft.files.bases import load_adapter, load_base

    model = load_adapter(load_base(base, dtype="float32")[0], adapter).eval()
    torch.save(model(torch.tensor([_IDS])).logits[0], out)


def _theirs(out: str, file: str) -> None:
    for name in ("RWKV_V7_ON", "RWKV_JIT_ON", "RWKV_CUDA_ON"):
        os.environ[name] = "0"
    found: Any = importlib.util.find_spec("rwkv")
    spec: Any = importlib.util.spec_from_file_location(
        "rwkv.model", Path(found.submodule_search_locations[0], "model.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.RWKV(file.removesuffix(".pth"), "cpu fp32")
    torch.save(model.forward(_IDS, None, full_output=True)[0], out)


if __name__ == "__main__":
    parts = {"make": _make, "ours": _ours, "theirs": _theirs}
    if len(sys.argv) > 1 and sys.argv[1] in parts:
        parts[sys.argv[1]](*sys.argv[2:])
    else:
        typer.run(main)
