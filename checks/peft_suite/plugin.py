"""For pytest, in the suite's folder: Bone in PEFT, no Hub, and a line of JSON for what became of each test."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from peft import PeftConfig

import bone_peft  # noqa: F401  (makes Bone a PEFT method)

RECORD = "BONE_PEFT_SUITE_RECORD"
_OUT_OF_REACH = (
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ModuleNotFoundError",
    "DatasetNotFoundError",
    "InvalidCxxCompiler",
)
_FORMS = ("bottleneck_size", "share", "bat")
_SAYS_OFFLINE = re.compile(r"offline|couldn't connect|couldn't reach|local_files_only", re.IGNORECASE)


def pytest_configure(config: pytest.Config) -> None:
    utilities = import_module("tests.testing_utils")
    utilities.hub_online_once = _offline
    utilities.load_dataset_english_quotes = _quotes


@contextmanager
def _offline(model_id: str) -> Iterator[None]:
    yield


def _quotes() -> DatasetDict:
    quotes = [f"Of {number} blocks, each carries what lies above it." for number in range(64)]
    columns = {"quote": quotes, "author": ["nobody"] * 64, "tags": [["blocks"]] * 64}
    return DatasetDict(train=Dataset.from_dict(columns))


def pytest_make_parametrize_id(config: pytest.Config, val: Any, argname: str) -> str | None:
    """A config's id is its class, and options' is the form of Bone that they select."""
    if isinstance(val, dict):
        return next((f"{argname}-{form}" for form in _FORMS if form in {*val, *map(str, val.values())}), None)
    parts = val if isinstance(val, tuple) else (val,)
    return next((type(part).__name__ for part in parts if isinstance(part, PeftConfig)), None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    if report.failed and call.excinfo is not None:
        missing = _what_is_missing(call.excinfo.value)
        if missing:
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, f"could not run: {missing}")
    return report


def _what_is_missing(error: BaseException | None) -> str | None:
    """What of the outside world an error asks for, looking also at what caused it."""
    while error is not None:
        kind = type(error).__name__
        if kind in _OUT_OF_REACH or (isinstance(error, OSError) and _SAYS_OFFLINE.search(str(error))):
            return f"{kind}: {str(error).strip().splitlines()[0]}"
        error = error.__cause__ or error.__context__
    return None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or not report.passed:
        _write(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if not report.passed:
        _write(report)


def _write(report: Any) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    line = {
        "test": report.nodeid,
        "outcome": report.outcome,
        "reason": "" if report.passed else _reason(report),
        "details": report.longreprtext if report.failed else "",
        "seconds": getattr(report, "duration", 0.0),
    }
    with Path(os.environ[RECORD]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _reason(report: Any) -> str:
    """One line."""
    if hasattr(report, "wasxfail"):
        return f"PEFT expects it to fail: {report.wasxfail}"
    if isinstance(report.longrepr, tuple):
        text = str(report.longrepr[2]).removeprefix("Skipped: ")
        return text.splitlines()[0]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (
        crash.message.splitlines()[0]
        if crash
        else report.longreprtext.strip().splitlines()[-1].removeprefix("E").strip()
    )
