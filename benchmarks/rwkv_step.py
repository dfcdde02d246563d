"""Time and memory of one training step of an RWKV, against the floor: the frozen base, forward and back to its input.

    python benchmarks/rwkv_step.py [--size x070-0.1B] [--what bone --what bat-input] [--batch 4] [--length 512]
        [--way plain --way checkpointing --way graphs]

Weights are random, in bf16; adapters are float32. The contestants take turns, with and without gradient checkpointing,
or as CUDA graphs; a step is forward, backward and AdamW. ``recurrence`` is what the recurrence alone takes, in all
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
from unittest.mock import patch

import torch
import typer
from torch import Tensor, nn

from bone_peft.costs.bench.contestants import Setting
from bone_peft.costs.bench.machine import timed
from bone_peft.costs.bench.training_step import Regime, compare
from bone_peft.rwkv import fresh, fresh_x060, kernels, kernels_x060, recurrence, recurrence_x060
from bone_peft.rwkv.pth_names import TARGETS, TARGETS_X060

_FRESH = {"x070": fresh.fresh_model, "x060": fresh_x060.fresh_model}


def _low_ranks(decay: int, value: int, gate: int) -> dict[str, int]:
    return {f"{name}_low_rank_dim": n for name, n in (("decay", decay), ("a", decay), ("v", value), ("gate", gate))}


SIZES: dict[str, dict[str, int]] = {
    "x070-tiny": {"hidden_size": 128, "layers": 2, **_low_ranks(32, 32, 32)},
    "x070-0.1B": {"hidden_size": 768, "layers": 12, **_low_ranks(64, 32, 128)},
    "x070-0.4B": {"hidden_size": 1024, "layers": 24, **_low_ranks(64, 32, 128)},
    "x070-1.5B": {"hidden_size": 2048, "layers": 24, **_low_ranks(96, 64, 256)},
    "x070-2.9B": {"hidden_size": 2560, "layers": 32, **_low_ranks(96, 64, 320)},
    "x060-tiny": {"hidden_size": 128, "layers": 2},
    "x060-1.6B": {"hidden_size": 2048, "layers": 24},
}
"""As the authors' own models have them."""


def main(
    what: Annotated[list[str], typer.Option(default_factory=lambda: ["bone"], show_default="bone")],
    way: Annotated[list[str], typer.Option(default_factory=lambda: ["plain", "checkpointing"])],
    size: str = "x070-0.1B",
    r: int = 64,
    batch: int = 4,
    length: int = 512,
    rounds: int = 3,
    steps: int = 5,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = random_base(size, device)
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
    targets = TARGETS if size.startswith("x070") else TARGETS_X060
    for kind in way:
        gc.collect()  # models hold themselves in cycles
        regime = Regime(
            batch=batch,
            length=length,
            device=device,
            checkpointing=kind == "checkpointing",
            graphs=kind == "graphs",
            rounds=rounds,
            steps=steps,
        )
        result[kind] = compare(base, regime, Setting(list(targets), r), what, partial(print, file=sys.stderr))
    print(json.dumps(result, indent=1))


def random_base(size: str, device: str) -> Any:
    """Frozen, in bf16, and without the zeros of a new model: products with zeros can be faster than others.

    Args:
        size: one of :data:`SIZES`; its first word is the architecture.
    """
    torch.manual_seed(0)
    with torch.device(device), patch("torch.nn.init.orthogonal_", lambda tensor, gain: tensor):  # takes a minute
        model = _FRESH[size.partition("-")[0]](**SIZES[size]).requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model.to(torch.bfloat16)


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
    is_7 = config.model_type == "rwkv7"
    w = torch.empty_like(r).uniform_(0.55, 1) if is_7 else -torch.empty_like(r).uniform_(0.01, 3)
    state = torch.zeros(len(ids), heads, width, width, device=ids.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    others = (r, k, v, a, b) if is_7 else (r, k, v, a[0, 0])
    low = [tensor.bfloat16().requires_grad_() for tensor in others]
    low.insert(1, w.requires_grad_())
    exact = [tensor.detach().float().requires_grad_() for tensor in low]

    def run(function: Callable[..., Any], values: list[Tensor]) -> list[Tensor]:
        y, _ = function(*values, state, mask)
        return [y, *torch.autograd.grad(y, values, v.to(y.dtype))]

    products = recurrence.recurrence if is_7 else recurrence_x060.recurrence
    theirs = kernels.kernels if is_7 else kernels_x060.kernels
    functions = {"products": products} | ({"flash-linear-attention": theirs} if kernels.takes(low[3]) else {})
    result = {}
    for name, function in functions.items():
        begun = perf_counter()
        found = run(function, low)
        float(found[-1].detach().sum())
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
