"""One architecture, tried with each method: what came of it, as plain data."""

from __future__ import annotations

import copy
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import NoMatchingPeftModuleError
from transformers import PreTrainedModel

from bone_peft import BoneConfig, BoneError

from .adapted import Adapted
from .bare import Usage, run, usage_of
from .demands import DEMANDS, Finding, reason, skipped
from .inputs import Inputs, inputs_for
from .models import tiny_model

METHODS: dict[str, dict[str, Any]] = {
    "bone": {"r": 4},
    "bat": {"r": 4, "init_weights": "bat"},
    "bat-input": {"r": 4, "init_weights": "bat", "share": "input"},
    "bottleneck": {"bottleneck_size": 4},
}
Result = dict[str, Any]


def examine(kind: str, name: str, methods: list[str]) -> Iterator[Result]:
    """Try an architecture.

    Yields:
        Of the bare model its ``class``, its number of linear ``layers``, and those that it leaves ``unused``; or why it
        ``fails``. Then the verdict on each method, by its name.
    """
    stage = "to build"
    try:
        model = tiny_model(kind, name)
        stage = "to make inputs for"
        inputs = inputs_for(model)
        stage = "to run"
        with torch.no_grad():
            finite = run(model, inputs).isfinite().all()
        stage = "to go backward"
        usage = usage_of(model, inputs)
    except Exception as error:
        yield {"fails": f"{stage}: {_told(error)}"}
        return
    if not finite:
        yield {"fails": "to run: the output is not finite"}
        return
    unused = sorted({pattern(layer) for layer in usage.all - usage.used})
    yield {"class": type(model).__name__, "layers": len(usage.all), "unused": unused}
    task = "SEQ_CLS" if kind == "sequence-classification" else None
    for method in methods:
        yield {method: verdict(model, inputs, usage, METHODS[method] | {"task_type": task})}


def verdict(model: PreTrainedModel, inputs: Inputs, usage: Usage, options: dict[str, Any]) -> Result:
    """The ``outcome`` of a method: ``right``, ``refused`` or ``wrong``, and what there is to say about it."""
    try:
        tried = Adapted(model, inputs, usage, _config(options))
    except (BoneError, NoMatchingPeftModuleError) as error:  # the latter is PEFT's: there is no linear layer
        return {"outcome": "refused", "says": pattern(str(error))}
    except Exception as error:
        return {"outcome": "wrong", "findings": _compact([Finding("raises", detail=_told(error))])}
    findings = _unmet(tried)
    if any(finding.difference is not None for finding in findings):
        findings = _without_rounding(findings, tried, options)
    result: Result = {"outcome": "wrong" if findings else "right", "layers": len(tried.layers)}
    left_out = {pattern(name): pattern(reason(tried, name) or "") for name in sorted(skipped(tried))}
    if left_out:
        result["skipped"] = left_out
    if findings:
        result["findings"] = _compact(findings)
    return result


def _config(options: dict[str, Any]) -> BoneConfig:
    return BoneConfig(target_modules="all-linear", **options)


def _unmet(tried: Adapted) -> list[Finding]:
    """What is wrong by the first demand that is not met."""
    try:
        return next((found for demand in DEMANDS if (found := list(demand(tried)))), [])
    except Exception as error:
        return [Finding("raises", detail=_told(error))]


def _without_rounding(findings: list[Finding], tried: Adapted, options: dict[str, Any]) -> list[Finding]:
    """What is wrong in float64 as well. A model that does not run in it is not excused."""
    wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in tried.inputs.items()}
    try:
        again = _unmet(Adapted(copy.deepcopy(tried.base).double(), wide, tried.usage, _config(options)))
    except Exception:
        return findings
    return findings if any(finding.what == "raises" for finding in again) else again


def _compact(findings: list[Finding]) -> list[Result]:
    """One for all layers of a name."""
    rows: dict[tuple[str, ...], Result] = {}
    for finding in findings:
        parts = {"what": finding.what, "layer": pattern(finding.layer), "detail": finding.detail}
        row = rows.setdefault(tuple(parts.values()), {name: value for name, value in parts.items() if value})
        if finding.difference is not None:
            row["difference"] = max(float(f"{finding.difference:.2g}"), row.get("difference", 0.0))
    return list(rows.values())


def pattern(text: str) -> str:
    """The text with a star for each number in the names of layers."""
    return re.sub(r"(?<=\.)\d+(?=\.|\W|$)", "*", text)


def _told(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    says = " ".join(str(error).split())
    says = says if len(says) <= 240 else f"{says[:240]}..."
    return f"{type(error).__name__}: {says} ({Path(where.filename).name}:{where.lineno})"
