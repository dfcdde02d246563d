"""What became of each test, read from what the plugin wrote."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

COULD_NOT_RUN = "could not run"
KINDS = ("passed", "failed", "skipped", COULD_NOT_RUN)
# Reasons of PEFT's own skips that speak of this machine, not of the method.
_NEEDS = re.compile(r"\b(gpus?|cuda|xpu|accelerators?|installed|available)\b|requires \w+$", re.IGNORECASE)
# A file that could not be collected, for want of a package or a download.
_ABSENT = re.compile(r"ModuleNotFoundError: No module named '(?!peft\b|bone_peft\b)|ConnectionError: ")
_WORST = ("failed", COULD_NOT_RUN, "skipped", "passed")


@dataclass
class Outcome:
    """One test.

    Attributes:
        test: its id; of a file that could not be collected, the file.
        kind: one of ``KINDS``.
        reason: why it failed, was skipped or could not run, in one line.
        details: what pytest has to say about it.
        seconds: it took.
    """

    test: str
    kind: str
    reason: str
    details: str
    seconds: float

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]


def read_outcomes(record: Path) -> list[Outcome]:
    """One outcome a test: of its set-up, its call and its tear-down, the worst."""
    found: dict[str, Outcome] = {}
    for line in record.read_text(encoding="utf-8").splitlines():
        outcome = _outcome(**json.loads(line))
        before = found.setdefault(outcome.test, outcome)
        if _WORST.index(outcome.kind) < _WORST.index(before.kind):
            found[outcome.test] = outcome
    return list(found.values())


def _outcome(test: str, outcome: str, reason: str, details: str, seconds: float) -> Outcome:
    if outcome == "failed" and "::" not in test and _ABSENT.match(reason):
        outcome = COULD_NOT_RUN
    if outcome == "skipped" and (reason.startswith(COULD_NOT_RUN) or _NEEDS.search(reason)):
        outcome = COULD_NOT_RUN
        reason = reason.removeprefix(f"{COULD_NOT_RUN}: ")
    return Outcome(test, outcome, reason, details, seconds)
