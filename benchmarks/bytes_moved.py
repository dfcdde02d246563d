"""What each way of training on several GPUs moves, by arithmetic: gigabytes that a GPU sends each step.

    python benchmarks/bytes_moved.py [--shape llama2-7b] [--tokens 4096]

Rings: to add up or to gather S bytes over p GPUs, each of them sends S (p - 1) / p, and twice that where all get
the sum. Adapters are float32, the base and what flows through it bfloat16. Prints a table in Markdown.
"""

from __future__ import annotations

from math import prod

import torch
import typer
from torch import nn
from transformers import AutoModelForCausalLM

from bone_peft.costs.bench.shapes import config_of
from bone_peft.method.variants import VARIANTS, Variant

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SUMMED_FORWARD, SUMMED_BACKWARD = 2, 5
"""Of the seven layers, tensor parallel adds up the outputs of two, and the gradients at the input of five."""
SIZES = (8, 64, 512)


def main(shape: str = "llama2-7b", tokens: int = 4096, r: int = 64, lora_r: int = 36) -> None:
    config = config_of(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = [m for n, m in model.named_modules() if n.endswith(LINEARS)]
    base = 2 * sum(p.numel() for p in model.parameters())
    adapters = {name: 4 * sum(_parameters(VARIANTS[name], layer, r) for layer in layers) for name in ("bone", "bat")}
    adapters["LoRA"] = 4 * sum(lora_r * (layer.in_features + layer.out_features) for layer in layers)
    flows = 2 * tokens * config.hidden_size * config.num_hidden_layers * (SUMMED_FORWARD + SUMMED_BACKWARD)
    print(f"| sent by each GPU, GB | adapter | {' | '.join(f'{size} GPUs' for size in SIZES)} |")
    print("|---|---|" + "---|" * len(SIZES))
    for name, adapter in adapters.items():
        ways = {
            "DDP": 2 * adapter,
            "FSDP2, ZeRO-3": 2 * (base + adapter) + adapter,
            "tensor parallel": 2 * (flows + adapter),
        }
        for way, moved in ways.items():
            cells = " | ".join(f"{moved * (size - 1) / size / 1e9:.2f}" for size in SIZES)
            print(f"| {way}, {name} | {adapter / 1e9:.2f} | {cells} |")


def _parameters(variant: type[Variant], layer: nn.Linear, r: int) -> int:
    return sum(prod(shape) for shape in variant.shapes(layer.in_features, layer.out_features, r).values())


if __name__ == "__main__":
    typer.run(main)
