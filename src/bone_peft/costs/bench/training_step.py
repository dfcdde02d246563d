"""The time and memory of one training step, for every contestant, in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from .contestants import FLOOR, Setting, contestant
from .cuda_graph import as_cuda_graph
from .machine import timed
from .shapes import random_model

GIB = 1 << 30


@dataclass(frozen=True)
class Regime:
    """How the steps are run. ``compiled``: each decoder layer under ``torch.compile``; ``graphs``: as CUDA graphs."""

    shape: str = "llama2-7b"
    layers: int | None = None
    batch: int = 4
    length: int = 1024
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"
    compiled: bool = False
    checkpointing: bool = False
    rounds: int = 3
    steps: int = 5
    graphs: bool = False


@dataclass
class Runner:
    """One contestant, ready to step.

    Attributes:
        own: bytes that it holds at rest, beside the frozen weights: parameters and optimizer state.
        peak: bytes that it had in use at most, other contestants left out.
        spans: milliseconds of each timed step.
        failed: why it gave up, if it did.
    """

    name: str
    step: Callable[[], None]
    parameters: int
    own: int = 0
    peak: int = 0
    spans: list[float] = field(default_factory=list)
    failed: str | None = None


def measure(regime: Regime, setting: Setting, names: list[str], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time training steps of all ``names``, in turns.

    Args:
        regime: model, batch and machine.
        setting: the adapters.
        names: contestants; the floor is added.
        say: told what is going on.

    Returns:
        By contestant: ``ms`` (median), ``spread`` (the quartiles), ``floors`` (``ms`` over the floor's),
        ``peak_gib``, ``over_gib`` (peak over the floor's), ``parameters``, or ``failed``.
    """
    return compare(random_model(regime.shape, regime.layers, regime.dtype, regime.device), regime, setting, names, say)


def compare(
    base: Any, regime: Regime, setting: Setting, names: list[str], say: Callable[[str], None] = print
) -> dict[str, Any]:
    """:func:`measure` on a frozen model at hand, whatever its architecture."""
    if regime.compiled:
        allow_recompiles()
    batch = make_batch(base, regime)
    weights = _allocated(regime)
    runners = []
    for name in [FLOOR, *(n for n in names if n != FLOOR)]:
        runners.append(_runner(name, base, batch, regime, setting))
        say(f"{name}: {runners[-1].failed or 'ready'}")
    for number in range(regime.rounds):
        for runner in runners:
            if runner.failed is None:
                _take_turn(runner, regime, weights)
                say(f"round {number + 1}, {runner.name}: {runner.failed or f'{median(runner.spans):.1f} ms'}")
    return _summary(runners)


def make_batch(base: Any, regime: Regime) -> dict[str, Tensor]:
    """Random inputs that need a gradient, and labels."""
    tokens = torch.randint(base.config.vocab_size, (regime.batch, regime.length), device=regime.device)
    embedded = base.get_input_embeddings()(tokens).detach()
    return {"inputs_embeds": embedded.requires_grad_(), "labels": tokens}


def _runner(name: str, base: nn.Module, batch: dict[str, Tensor], regime: Regime, setting: Setting) -> Runner:
    before = _allocated(regime)
    step, optimizer = make_step(name, base, batch, regime, setting)
    trained = optimizer.param_groups[0]["params"] if optimizer else []
    runner = Runner(name, step, sum(p.numel() for p in trained))
    with _catching(runner):
        step()
        step()
    if runner.failed and optimizer is not None:
        optimizer.zero_grad()
        optimizer.state.clear()
    batch["inputs_embeds"].grad = None
    _tidy(regime)
    runner.own = _allocated(regime) - before
    return runner


def make_step(
    name: str, base: nn.Module, batch: dict[str, Tensor], regime: Regime, setting: Setting
) -> tuple[Callable[[], None], torch.optim.Optimizer | None]:
    """A contestant's training step, ready to be called, and its optimizer if it trains anything."""
    model: Any = contestant(name, base, setting).train()
    if regime.checkpointing:
        (model if name == FLOOR else model.get_base_model()).gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    if regime.compiled:
        for layer in base_layers(model):
            layer.compile(dynamic=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True, capturable=regime.graphs) if trained else None

    def step() -> None:
        batch["inputs_embeds"].grad = None
        model(**batch, use_cache=False).loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return as_cuda_graph(step) if regime.graphs else step, optimizer


def allow_recompiles() -> None:
    """Contestants share the code of their layers, and it is compiled anew for each, and for each layer with a cache."""
    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 4096


def base_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers."""
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList))


def _take_turn(runner: Runner, regime: Regime, weights: int) -> None:
    _tidy(regime)
    others = _allocated(regime) - weights - runner.own
    with _catching(runner):
        runner.step()
        if regime.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        runner.spans += timed(runner.step, regime.device, regime.steps)
        if regime.device == "cuda":
            runner.peak = max(runner.peak, torch.cuda.max_memory_allocated() - others)


class _catching:  # noqa: N801
    """Running out of memory is a result, not an error."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if kind is not None and issubclass(kind, torch.OutOfMemoryError):
            self.runner.failed = "out of memory"
            return True
        return False


def _allocated(regime: Regime) -> int:
    return torch.cuda.memory_allocated() if regime.device == "cuda" else 0


def _tidy(regime: Regime) -> None:
    gc.collect()
    if regime.device == "cuda":
        torch.cuda.empty_cache()


def _summary(runners: list[Runner]) -> dict[str, Any]:
    floor = runners[0]
    result: dict[str, Any] = {}
    for runner in runners:
        if runner.failed:
            result[runner.name] = {"failed": runner.failed, "parameters": runner.parameters}
            continue
        middle = median(runner.spans)
        low, _, high = quantiles(runner.spans, n=4, method="inclusive") if len(runner.spans) > 1 else [middle] * 3
        row = {"ms": middle, "spread": [low, high], "parameters": runner.parameters}
        if floor.spans:
            row["floors"] = middle / median(floor.spans)
        if runner.peak:
            row["peak_gib"] = runner.peak / GIB
            row["over_gib"] = (runner.peak - floor.peak) / GIB
        result[runner.name] = row
    return result
