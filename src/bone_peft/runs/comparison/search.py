"""Which runs a study still wants, from those that are done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .study import Study

Results = Mapping["Trial", Mapping[str, Any]]


@dataclass(frozen=True, order=True)
class Trial:
    """One run of a study."""

    method: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.method}-lr{self.rate:g}-seed{self.seed}"


def wanted(study: Study, results: Results) -> list[Trial]:
    """Runs that can start now. When they are done there may be more; none means that the study is finished.

    The first rates of a method come first; then a rate beyond the end that is best; then the other seeds at the best.
    """
    return [trial for name in study.methods for trial in _of_method(study, name, results)]


def value_of(result: Mapping[str, Any], judge: str) -> float:
    """How good a run is, less is better; infinite if it failed."""
    if "failed" in result:
        return math.inf
    value = result[judge]
    return float(value) if judge == "loss" else -float(value)


def best_rate(study: Study, name: str, results: Results) -> float | None:
    """The learning rate at which the first seed does best; None if no run of the method came to its end."""
    values = {trial.rate: value_of(result, study.judge) for trial, result in _firsts(name, results).items()}
    best = min(values, key=lambda rate: (values[rate], rate), default=None)
    return None if best is None or values[best] == math.inf else best


def _firsts(name: str, results: Results) -> dict[Trial, Mapping[str, Any]]:
    return {trial: result for trial, result in results.items() if trial.method == name and trial.seed == 0}


def _of_method(study: Study, name: str, results: Results) -> list[Trial]:
    first = [Trial(name, rate, 0) for rate in study.methods[name]]
    missing = [trial for trial in first if trial not in results]
    if missing:
        return missing
    best = best_rate(study, name, results)
    if best is None:
        return []
    tried = sorted(trial.rate for trial in _firsts(name, results))
    if len(tried) - len(first) < study.widen and best in (tried[0], tried[-1]):
        further = best / 2 if best == tried[0] else best * 2
        return [Trial(name, float(f"{further:.6g}"), 0)]
    return [trial for seed in range(1, study.seeds) if (trial := Trial(name, best, seed)) not in results]
