"""Time and memory of one training step of an RWKV-7, against the floor: the frozen base, forward and back to its input.

    python benchmarks/rwkv_step.py [--size 0.1B] [--what bone --what bat-input] [--batch 4] [--length 512]

Weights are random, in bf16; adapters are float32. The contestants take turns, with and without gradient checkpointing;
a step is forward, backward and AdamW. ``recurrence`` is what the recurrence alone takes, forward and backward, in all
layers: as matrix products, and by the kernels of ``flash-linear-attention`` (on a GPU, if ``fla-core`` is installed;
the steps take them too then). Needs neither data nor network. Prints JSON.
"""

from __future__ import annotations

import gc
import json
import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from bone_peft.costs.bench.contestants import Setting
from bone_peft.costs.bench.machine import timed
from bone_peft.costs.bench.training_step import Regime, compare
from bone_peft.rwkv.fresh import fresh_model
from bone_peft.rwkv.kernels import kernels, takes
from bone_peft.rwkv.pth_names import TARGETS
from bone_peft.rwkv.recurrence import recurrence as products

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "layers": 2, "vocab_size": 512},
    "0.1B": {"hidden_size": 768, "layers": 12},
    "0.4B": {"hidden_size": 1024, "layers": 24},
}


def main(
    what: Annotated[list[str], typer.Option(default_factory=lambda: ["bone"], show_default="bone")],
    size: str = "0.1B",
    r: int = 64,
    batch: int = 4,
    length: int = 512,
    rounds: int = 3,
    steps: int = 5,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = _base(size, device)
    ids = torch.randint(1, base.config.vocab_size, (batch, length), device=device)

    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "rwkv7-hf")},
        **{name: version(name) for name in ("triton", "fla-core") if find_spec(name.partition("-")[0])},
        "size": size,
        "parameters": sum(parameter.numel() for parameter in base.parameters()),
        "setting": {"r": r, "batch": batch, "length": length, "rounds": rounds, "steps": steps},
        "recurrence": _recurrences(base.config, ids, steps),
    }
    for kind in ("plain", "checkpointing"):
        gc.collect()  # models hold themselves in cycles
        regime = Regime(
            batch=batch,
            length=length,
            device=device,
            checkpointing=kind == "checkpointing",
            rounds=rounds,
            steps=steps,
        )
        result[kind] = compare(base, regime, Setting(list(TARGETS), r), what, partial(print, file=sys.stderr))
    print(json.dumps(result, indent=1))


def _base(size: str, device: str) -> Any:
    """Frozen, in bf16, and without the zeros of a new model: products with zeros can be faster than others."""
    torch.manual_seed(0)
    model = fresh_model(**SIZES[size]).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model.to(device, torch.bfloat16)


def _recurrences(config: Any, ids: Tensor, steps: int) -> dict[str, dict[str, float]]:
    """Ours and, if it is there, flash-linear-attention's, on values of the types that they have in a bf16 model.

    ``ms`` is of all layers, forward and backward; ``first_s`` is what the first call takes, in which Triton compiles
    and tunes; ``difference`` is how far output and gradients are from the products in float32 at most, relative to
    their norms.
    """
    heads, width = config.num_heads, config.head_dim
    r, k, v, a, b = (
        nn.functional.normalize(torch.randn(*ids.shape, heads, width, device=ids.device), dim=-1) for _ in range(5)
    )
    w = torch.empty_like(r).uniform_(0.55, 1)
    state = torch.zeros(len(ids), heads, width, width, device=ids.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    low = [tensor.bfloat16().requires_grad_() for tensor in (r, k, v, a, b)]
    low.insert(1, w.requires_grad_())
    exact = [tensor.detach().float().requires_grad_() for tensor in low]

    def run(function: Callable[..., Any], values: list[Tensor]) -> list[Tensor]:
        y, _ = function(*values, state, mask)
        return [y, *torch.autograd.grad(y, values, v.to(y.dtype))]

    functions = {"products": products} | ({"flash-linear-attention": kernels} if takes(low[3]) else {})
    result = {}
    for name, function in functions.items():
        begun = perf_counter()
        found = run(function, low)
        float(found[-1].sum())
        first = perf_counter() - begun
        expected = run(products, exact)
        largest = max(float((x.float() - y).norm() / y.norm()) for x, y in zip(found, expected, strict=True))
        spans = timed(lambda function=function: run(function, low), ids.device.type, steps + 2)[2:]
        result[name] = {
            "ms": round(config.num_hidden_layers * median(spans), 2),
            "first_s": round(first, 1),
            "difference": largest,
        }
    return result


if __name__ == "__main__":
    typer.run(main)
