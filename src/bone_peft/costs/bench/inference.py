"""Tokens a second: reading a prompt, and writing one token after another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import StaticCache

from .contestants import FLOOR, Setting, contestant
from .cuda_graph import as_cuda_graph
from .machine import timed
from .shapes import random_model
from .training_step import allow_recompiles, base_layers

MERGED = "-merged"
MIXED = "-mixed"
"""Suffixes: the adapter merged into the weights; and six adapters in turns, in one batch."""
_SIX = ["default", "second", "third", "fourth", "fifth", "sixth"]


@dataclass(frozen=True)
class Regime:
    """How inference is run.

    ``compiled``: each decoder layer under ``torch.compile``, decoding as one CUDA graph. ``graphs``: reading and
    decoding as one each.
    """

    shape: str = "llama2-7b"
    layers: int | None = None
    batch: int = 1
    prompt: int = 512
    tokens: int = 64
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"
    compiled: bool = False
    rounds: int = 3
    graphs: bool = False


@torch.no_grad()
def measure(regime: Regime, setting: Setting, names: list[str], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time all ``names`` and the bare base, in turns.

    Args:
        regime: model, batch and machine.
        setting: the adapters.
        names: contestants, with ``-merged`` or ``-mixed`` after the name where that is meant.
        say: told what is going on.

    Returns:
        By name: ``prefill`` and ``decode``, each with ``tokens_s`` (median), ``spread`` (the quartiles) and ``bases``
        (``tokens_s`` over the base's).
    """
    if regime.compiled:
        allow_recompiles()
    base = random_model(regime.shape, regime.layers, regime.dtype, regime.device).eval()
    runs: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]] = {}
    for name in [FLOOR, *(n for n in names if n != FLOOR)]:
        runs[name] = _runs(_model(name, base, setting), regime, mixed=name.endswith(MIXED))
        say(f"{name}: ready")
    speeds: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in runs}
    for number in range(regime.rounds):
        for name, (prefill, decode, reset) in runs.items():
            prefill()
            spans = timed(prefill, regime.device, 3)
            speeds[name]["prefill"] += [1e3 * regime.batch * regime.prompt / span for span in spans]
            reset()
            decode()
            spans = timed(partial(_repeat, decode, 8), regime.device, regime.tokens // 8)
            speeds[name]["decode"] += [1e3 * regime.batch * 8 / span for span in spans]
            say(f"round {number + 1}, {name}: {median(speeds[name]['decode']):.1f} tokens/s")
    return {name: {kind: _row(found[kind], speeds[FLOOR][kind]) for kind in found} for name, found in speeds.items()}


def _repeat(run: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        run()


def _row(found: list[float], floor: list[float]) -> dict[str, Any]:
    low, _, high = quantiles(found, n=4, method="inclusive")
    return {"tokens_s": median(found), "spread": [low, high], "bases": median(found) / median(floor)}


def _model(name: str, base: nn.Module, setting: Setting) -> nn.Module:
    merged = name.endswith(MERGED)
    if merged:
        base = copy.deepcopy(base)
    plain = name.removesuffix(MERGED).removesuffix(MIXED)
    model = contestant(plain, base, setting).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=1e-3)
    if name.endswith(MIXED) and isinstance(model, PeftModel):
        for more in _SIX[1:]:
            model.add_adapter(more, model.peft_config["default"])
    return model.merge_and_unload() if merged and isinstance(model, PeftModel) else model.requires_grad_(False)


def _runs(
    model: nn.Module, regime: Regime, mixed: bool
) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    """Functions that read the prompt, write one token, and go back to the end of the prompt."""
    config: Any = model.config
    ids = torch.randint(config.vocab_size, (regime.batch, regime.prompt), device=regime.device)
    more: dict[str, Any] = {"adapter_names": [_SIX[i % 6] for i in range(regime.batch)]} if mixed else {}
    if regime.compiled and not mixed:
        for layer in base_layers(model):
            layer.compile(dynamic=False)

    def prefill() -> Any:
        return model(input_ids=ids, use_cache=False, logits_to_keep=1, **more)

    length = regime.prompt + regime.tokens + 16
    cache: Any = StaticCache(config=config, max_cache_len=length)
    token, position = ids[:, :1].clone(), torch.full((1, 1), regime.prompt, device=regime.device)
    places = torch.arange(length, device=regime.device)

    def decode() -> Tensor:
        mask = (places <= position)[None, None]
        out = model(
            input_ids=token,
            attention_mask=mask.expand(regime.batch, 1, 1, length),
            position_ids=position,
            past_key_values=cache,
            **more,
        )
        position.add_(1)
        token.copy_(out.logits[:, -1:].argmax(-1))
        return token

    def reset() -> None:
        position.fill_(regime.prompt)
        for layer in cache.layers:
            layer.cumulative_length.fill_(regime.prompt)

    decode()
    reset()
    if regime.graphs:
        return as_cuda_graph(prefill), as_cuda_graph(decode), reset
    if regime.compiled and regime.device == "cuda" and not mixed:
        return prefill, as_cuda_graph(decode), reset
    return prefill, decode, reset
