"""What a study found, a line for each method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from .search import Results, best_rate, value_of
from .study import Study


@dataclass(frozen=True)
class Line:
    """One method.

    Attributes:
        method: its name.
        size: rank or block size.
        parameters: how many are trained.
        rate: the learning rate at which it does best; None if no run came to its end.
        at_an_end: whether that is the least or the greatest that was tried: there may be a better one beyond.
        runs: how many runs the means are of.
        means: of ``loss``, ``exact_match`` and ``final_answer``, as far as they are there.
        errors: standard errors of these means; none of a single run.
        step_ms, peak_bytes: of a step by itself.
        why: what is wrong, if there is no rate.
    """

    method: str
    size: int | None
    parameters: int | None
    rate: float | None
    at_an_end: bool
    runs: int
    means: Mapping[str, float]
    errors: Mapping[str, float]
    step_ms: float | None
    peak_bytes: int | None
    why: str = ""


def summary(
    study: Study, results: Results, timed: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]
) -> list[Line]:
    """The methods, the best first.

    Args:
        timed: by method, what its first steps told.
    """
    lines = [_line(study, name, results, timed.get(name, {}), sizes.get(name)) for name in study.methods]
    return sorted(lines, key=lambda line: _value(line, study.judge))


def _value(line: Line, judge: str) -> float:
    return value_of(line.means, judge) if line.means else math.inf


def _line(study: Study, name: str, results: Results, timed: Mapping[str, Any], size: int | None) -> Line:
    own = {trial: result for trial, result in results.items() if trial.method == name}
    rate = best_rate(study, name, results)
    at_best = [result for trial, result in own.items() if trial.rate == rate and "failed" not in result]
    tried = sorted({trial.rate for trial in own if trial.seed == 0})
    columns = {
        key: [float(result[key]) for result in at_best]
        for key in ("loss", "exact_match", "final_answer")
        if at_best and all(result.get(key) is not None for result in at_best)
    }
    failed = next((str(result["failed"]) for result in (timed, *own.values()) if "failed" in result), "")
    return Line(
        method=name,
        size=size,
        parameters=timed.get("parameters"),
        rate=rate,
        at_an_end=rate is not None and len(tried) > 1 and rate in (tried[0], tried[-1]),
        runs=len(at_best),
        means={key: mean(values) for key, values in columns.items()},
        errors={key: stdev(values) / math.sqrt(len(values)) for key, values in columns.items() if len(values) > 1},
        step_ms=timed.get("step_ms"),
        peak_bytes=timed.get("peak_bytes"),
        why=failed if rate is None else "",
    )
