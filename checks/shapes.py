"""Memory over many different shapes of input on a CPU: an adapted model beside the bare one, each in its own process.

Every shape of a product is new to oneDNN, which keeps what it compiled for the last 1,024 of them, or for as many as
``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` says.
"""

from __future__ import annotations

import os
import subprocess
import sys

import typer

_VARIANTS = {"bare": None, "bone": {"r": 64}, "bat": {"r": 64, "init_weights": "bat"}}


def grow(variant: str, shapes: int, dtype: str) -> None:
    """Run ``shapes`` forward passes of different shapes and print resident MiB along the way."""
    import torch
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from bone_peft import BoneConfig

    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    options = _VARIANTS[variant]
    if options is not None:
        model = get_peft_model(model, BoneConfig(target_modules="all-linear", **options)).eval()
    seen = []
    with torch.no_grad():
        for index in range(shapes):
            if index % (shapes // 5) == 0:
                seen.append(_resident())
            model(torch.ones(1 + index % 4, 16 + index // 4, dtype=torch.long))
    print(" ".join(f"{mib:6.0f}" for mib in [*seen, _resident()]))


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(shapes: int = 500, dtype: str = "bfloat16") -> None:
    """Resident MiB at six points of SHAPES different shapes."""
    for variant in _VARIANTS:
        for capacity in ("", "16"):
            environment = os.environ | ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": capacity} if capacity else {})
            code = f"from checks.shapes import grow; grow({variant!r}, {shapes}, {dtype!r})"
            done = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
            )
            print(f"{variant:5} cache {capacity or 'default':8} {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    typer.run(main)
