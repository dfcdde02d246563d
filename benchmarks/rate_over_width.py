"""Does the best learning rate of an adapter move with the width of the base?

    python benchmarks/rate_over_width.py rows.jsonl [--widths 96 --widths 192 --widths 384] [--chart it.svg]
        [--out it.json]

Byte-level Llamas of two layers are pretrained for ``--pretraining`` steps on the texts of a JSON Lines file (GSM8K's
training rows, say), then adapted for ``--steps`` steps to generated word problems with worked answers. By base and
adapter, rates in steps of two are tried until the best has a worse one on either side. All on one core.
"""

from __future__ import annotations

import json
import math
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bone_peft import BoneConfig
from bone_peft.io.drawing import save_figure
from bone_peft.runs.data import load_data

_OPTIONS: dict[str, dict[str, Any]] = {
    "bone": {},
    "bat": {"init_weights": "bat"},
    "bat-input": {"init_weights": "bat", "share": "input"},
}
_LENGTH, _MOST_RATES = 96, 8


def main(
    texts: Path,
    widths: Annotated[list[int], typer.Option(default_factory=lambda: [96, 192, 384], show_default="96, 192, 384")],
    pretraining: int = 400,
    steps: int = 100,
    rows: int = 8,
    r: int = 32,
    seed: int = 0,
    out: Path | None = None,
    chart: Path | None = None,
) -> None:
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
    before = _bytes("\n".join(str(value) for value in line.values()) for line in lines)
    train, test = (_task(size, number) for size, number in ((8000, 1), (500, 2)))
    found = []
    for width in widths:
        base = _pretrained(width, before, pretraining)
        told = {"width": width, "base": _loss(base, test)}
        for name in _OPTIONS:
            rates = _search(partial(_adapted, base, name, train, test, steps, rows, r, seed))
            found.append({**told, "variant": name, "losses": rates})
            print(width, name, rates, flush=True)
    result = {"command": f"python benchmarks/rate_over_width.py {texts.name}", "torch": torch.__version__}
    result |= {"pretraining": pretraining, "steps": steps, "rows": rows, "length": _LENGTH, "r": r, "found": found}
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    if chart is not None:
        _draw(found, chart)


def _bytes(texts: Any) -> Tensor:
    return torch.tensor(list("\n\n".join(texts).encode()), dtype=torch.long)


def _task(size: int, seed: int) -> Tensor:
    rows = load_data(f"gym:gsm_symbolic?worked=true&size={size}&seed={seed}")
    return _bytes(f"{row['prompt']}\n{row['completion']}" for row in rows)


def _batch(text: Tensor, rows: int, draw: torch.Generator) -> dict[str, Tensor]:
    starts = torch.randint(0, len(text) - _LENGTH, (rows,), generator=draw).tolist()
    ids = torch.stack([text[start : start + _LENGTH] for start in starts])
    return {"input_ids": ids, "labels": ids}


def _loss(model: Any, text: Tensor) -> float:
    draw = torch.Generator().manual_seed(9)
    model.eval()
    with torch.inference_mode():
        return sum(float(model(**_batch(text, 16, draw)).loss) for _ in range(12)) / 12


def _descend(model: Any, text: Tensor, rate: float, steps: int, rows: int, seed: int) -> None:
    """AdamW with a short warm-up and a cosine."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    draw = torch.Generator().manual_seed(seed + 1)
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = (
            rate * min(1, 20 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2
        )
        model(**_batch(text, rows, draw)).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _pretrained(width: int, text: Tensor, steps: int) -> Any:
    torch.manual_seed(0)
    heads = width // 32
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    model = LlamaForCausalLM(config)
    _descend(model, text, 2e-3 * math.sqrt(192 / width), steps, 16, 0)
    return model


def _adapted(
    base: Any, name: str, train: Tensor, test: Tensor, steps: int, rows: int, r: int, seed: int, rate: float
) -> float:
    torch.manual_seed(seed)
    model: Any = get_peft_model(base, BoneConfig(r=r, target_modules="all-linear", **_OPTIONS[name]))
    _descend(model, train, rate, steps, rows, seed + 5)
    loss = _loss(model, test)
    model.unload()
    return loss


def _search(loss_at: Any) -> dict[float, float]:
    """Losses by rate."""
    at, rates = cache(loss_at), [2e-3, 4e-3, 8e-3]
    while len(rates) < _MOST_RATES:
        best = min(rates, key=at)
        if best not in (rates[0], rates[-1]):
            break
        rates = sorted([*rates, best / 2 if best == rates[0] else best * 2])
    return {rate: at(rate) for rate in rates}


def _draw(found: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(_OPTIONS), sharey=True), _OPTIONS, strict=True):
        for one in (one for one in found if one["variant"] == name):
            axes.plot(one["losses"].keys(), one["losses"].values(), marker="o", label=f"width {one['width']}")
        axes.set_xscale("log", base=2)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("learning rate")
        ticks = sorted({rate for one in found for rate in one["losses"]})
        axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test loss (nats a byte)")
    figure.axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    typer.run(main)
