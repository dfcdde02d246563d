"""Is a merged model faster than its base? Bases, adapters and merged models in turns, on an OPT-125m of random weights.

    python benchmarks/merged_inference.py [--repeats 15]

Prints the median time of a forward pass over 128 tokens and of 16 generated tokens, and each as a share of the base's.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import typer
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from bone_peft import BoneConfig
from bone_peft.costs.estimation import config_of

TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
CONFIGS = {
    "Bottleneck 128 x 4.0": {"bottleneck_size": 128, "bottleneck_alpha": 4.0},
    "Bottleneck 32 x 2.0": {"bottleneck_size": 32, "bottleneck_alpha": 2.0},
    "Bone r=64": {"r": 64, "init_weights": False},
}


@torch.no_grad()
def main(repeats: int = 15) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config_of("opt-125m")).float().eval()
    models = {"base": base}
    for name, options in CONFIGS.items():
        models[name] = get_peft_model(copy.deepcopy(base), BoneConfig(target_modules=TARGETS, **options)).eval()
        models[f"{name}, merged"] = copy.deepcopy(models[name]).merge_and_unload().eval()
    prompt = torch.randint(5, 1000, (1, 128))

    def forward(model: torch.nn.Module) -> object:
        return model(prompt)

    def generate(model: Any) -> object:
        return model.generate(input_ids=prompt[:, :16], max_new_tokens=16, min_new_tokens=16, do_sample=False)

    found: dict[str, Any] = {"threads": torch.get_num_threads(), "repeats": repeats}
    for label, action in (("forward, 128 tokens", forward), ("generate, 16 tokens", generate)):
        found[label] = _compare(models, action, repeats)
    print(json.dumps(found, indent=1))


def _compare(models: dict[str, torch.nn.Module], action: Callable[[torch.nn.Module], object], repeats: int) -> dict:
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repeats + 2):
        for name, model in models.items():
            start = time.perf_counter()
            action(model)
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    base = statistics.median(times["base"])
    return {
        name: {"ms": round(1000 * statistics.median(t), 2), "of base": round(statistics.median(t) / base, 3)}
        for name, t in times.items()
    }


if __name__ == "__main__":
    typer.run(main)
