"""Whole training runs of an RWKV: ours as ``bone train`` does them, and RWKV-PEFT's own ``train.py`` beside them.

    python benchmarks/rwkv_run.py [--size x070-0.4B] [--what bone --what bat] [--batch 4] [--length 1024] [--steps 48]
        [--rwkv-peft FOLDER --peft bone --op cuda] [--quantize 4bit] [--checkpointing] [--base FILE.pth]
        [--out FILE.json]

Weights and rows are random, the weights in bf16 (``--base``: those of a file, which is made if it is not there); every
row has ``--length`` tokens, and all of them are learned. Each run is a process of its own, and its steady rate leaves
out the first eighth of the steps. ``floor`` is the frozen model's step, forward and back to its input, one by one
(``plain``) and as CUDA graphs.

RWKV-PEFT is a checkout of its repository, run as it is: with ``bone activate``, and with PyTorch's own fused Adam in
the place of DeepSpeed's, which is compiled when it is first used. Its ``bf16`` is bfloat16 throughout, as DeepSpeed
makes it, where Lightning alone takes autocast. Needs no network. Prints JSON; ``--out`` has what is known so far.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from bone_peft.costs.bench.contestants import Setting
from bone_peft.costs.bench.machine import describe
from bone_peft.costs.bench.training_step import Regime, compare
from bone_peft.runs.benchmark import Whole, measure
from bone_peft.rwkv.pth_model import load_model, save_model

sys.path.insert(0, str(Path(__file__).parent))
from rwkv_step import SIZES, random_base

_PEAK = "peak bytes: "


def main(
    what: Annotated[list[str], typer.Option(default_factory=lambda: ["bone", "bat"], show_default="bone, bat")],
    peft: Annotated[list[str], typer.Option(default_factory=lambda: ["bone"], show_default="bone")],
    size: str = "x070-0.4B",
    r: int = 64,
    batch: int = 4,
    length: int = 1024,
    steps: int = 48,
    rounds: int = 1,
    rwkv_peft: str | None = None,
    op: str = "cuda",
    checkpointing: bool = False,
    quantize: str = "none",
    floor: bool = True,
    base: Path | None = None,
    out: Path | None = None,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = {"r": r, "batch": batch, "length": length, "steps": steps, "rounds": rounds}
    result: dict[str, Any] = {**describe(device), "size": size, "setting": setting}
    result["command"] = " ".join(["python", "benchmarks/rwkv_run.py", *_arguments()])
    with tempfile.TemporaryDirectory() as folder:
        base, rows = base or Path(folder, "base.pth"), Path(folder, "rows.jsonl")
        if not base.exists():
            _in_a_process("_make", size, device, str(base))
        _write_rows(rows, batch * steps, length)
        if floor:
            result["floor"] = json.loads(_in_a_process("_floor", str(base), device, str(batch), str(length))[-1])
            _keep(result, out)
        training: dict[str, Any] = {"gradient_checkpointing": True} if checkpointing else {}
        whole = Whole(str(base), str(rows), ("q", "text"), steps, batch, length, r)
        whole = replace(whole, training=training, quantize=quantize)
        result["runs"] = measure(whole, what, rounds=rounds, say=_say)
        _keep(result, out)
        if rwkv_peft is not None:
            for name in peft:
                command = _command(size, name, base, rows, op, batch, length, steps, r, checkpointing, quantize)
                result["runs"][f"rwkv-peft-{name}"] = _theirs(Path(rwkv_peft), command, Path(folder), batch * length)
                _say(f"rwkv-peft-{name}: {result['runs'][f'rwkv-peft-{name}']}")
                _keep(result, out)
    print(json.dumps(result, indent=1))


def _keep(result: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> list[str]:
    """Without places on the machine."""
    return [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]


def _in_a_process(*arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()


def _make(size: str, device: str, path: str) -> None:
    save_model(random_base(size, device), path)


def _write_rows(path: Path, count: int, length: int) -> None:
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            words = ("".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(length))
            file.write(json.dumps({"q": " ", "text": " ".join(words)}) + "\n")


def _floor(path: str, device: str, batch: int, length: int) -> None:
    base = load_model(path).requires_grad_(False).to(device)
    result = {}
    for way in ("plain", "graphs") if device == "cuda" else ("plain",):
        regime = Regime(batch=batch, length=length, device=device, graphs=way == "graphs")
        found = compare(base, regime, Setting(["r_proj"], 64), [], _say)["floor"]
        result[way] = {**found, "tokens_s": batch * length / found["ms"] * 1e3}
    print(json.dumps(result))


# RWKV-PEFT


def _command(
    size: str,
    peft: str,
    base: Path,
    rows: Path,
    op: str,
    batch: int,
    length: int,
    steps: int,
    r: int,
    checkpointing: bool,
    quantize: str,
) -> list[str]:
    gpu = torch.cuda.is_available()
    options = {
        "load_model": base,
        "proj_dir": rows.with_name("theirs"),
        "data_file": rows,
        "data_type": "jsonl",
        "vocab_size": 65536,
        "n_layer": SIZES[size]["layers"],
        "n_embd": SIZES[size]["hidden_size"],
        "ctx_len": length,
        "micro_bsz": batch,
        "epoch_steps": steps * batch,
        "epoch_count": 1,
        "epoch_save": 1,
        "lr_init": 1e-4,
        "lr_final": 1e-4,
        "accelerator": "gpu" if gpu else "cpu",
        "precision": "bf16",
        "devices": 1,
        "grad_cp": int(checkpointing),
        "my_testing": size.partition("-")[0],
        "op": op,
        "num_workers": 0,
        "merge": 0,
        "quant": {"none": "none", "4bit": "nf4", "8bit": "int8"}[quantize],
        "peft": peft,
        "peft_config": json.dumps({"r": r}),
    }
    return [word for option, value in options.items() for word in (f"--{option}", str(value))]


def _theirs(checkout: Path, command: list[str], folder: Path, tokens: int) -> dict[str, Any]:
    """Its own log has the time of each step."""
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "_train", *command],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(place) for place in places if place)},
        capture_output=True,
        text=True,
        check=False,
    )
    log = folder / "theirs" / "loss_data.jsonl"
    said = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode or not log.is_file():
        return {"failed": [line[:300] for line in said[-12:]]}
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    rates = [1e3 * step["kt_s"] for step in steps[max(1, len(steps) // 8) :]]
    peak = next((int(line[len(_PEAK) :]) for line in said if line.startswith(_PEAK)), None)
    log.unlink()
    return {
        "tokens_s": len(rates) / sum(1 / rate for rate in rates),
        "median": median(rates),
        "tokens_a_step": tokens,
        "peak_gib": peak and peak / 2**30,
        "losses": [steps[0]["loss"], steps[-1]["loss"]],
    }


def _train(*command: str) -> None:
    import deepspeed.ops.adam
    import lightning

    import bone_peft_hook

    bone_peft_hook.install()  # what bone activate has every program of an environment do

    def adam(groups: Any, lr: float, betas: Any, eps: float, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, weight_decay=0, fused=torch.cuda.is_available())

    def trainer(*args: Any, precision: str, _made: Any = lightning.Trainer, **kwargs: Any) -> Any:
        return _made(*args, precision="bf16-true" if precision == "bf16" else precision, **kwargs)

    deepspeed.ops.adam.FusedAdam = adam
    lightning.Trainer = trainer
    sys.path.insert(0, os.getcwd())
    sys.argv = ["train.py", *command]
    runpy.run_path("train.py", run_name="__main__")
    if torch.cuda.is_available():
        print(f"{_PEAK}{torch.cuda.max_memory_allocated()}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["_make"]:
        _make(*sys.argv[2:])
    elif sys.argv[1:2] == ["_floor"]:
        _floor(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    elif sys.argv[1:2] == ["_train"]:
        _train(*sys.argv[2:])
    else:
        typer.run(main)
