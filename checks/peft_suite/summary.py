"""What came of the run, for people and as JSON."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from .expected import Expectation
from .outcomes import COULD_NOT_RUN, KINDS, Outcome
from .suite import Suite


@dataclass
class Summary:
    """Outcomes, beside what was expected.

    Attributes:
        outcomes: of all tests that were run.
        suite: they are of.
        expected: the failures that are explained.
        whole: whether all of Bone's cases were run, so that an expectation that nothing fits is out of date.
        seconds: the run took.
    """

    outcomes: list[Outcome]
    suite: Suite
    expected: list[Expectation]
    whole: bool
    seconds: float

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.kind == "failed"]

    @property
    def unexplained(self) -> list[Outcome]:
        return [failure for failure in self.failures if self.why(failure) is None]

    @property
    def unused(self) -> list[str]:
        """Patterns that fit no failure, though the tests that they are about were run."""
        tests = {outcome.test for outcome in self.outcomes}
        failed = {failure.test for failure in self.failures}
        return [
            expectation.pattern
            for expectation in self.expected
            if not any(map(expectation.fits, failed)) and (self.whole or any(map(expectation.fits, tests)))
        ]

    def why(self, failure: Outcome) -> str | None:
        return next((expectation.why for expectation in self.expected if expectation.fits(failure.test)), None)

    def text(self) -> str:
        lines = ["", f"{'':44}" + "".join(f"{kind:>15}" for kind in KINDS)]
        for file, counts in self._by_file().items():
            lines.append(f"{file:44}" + "".join(f"{counts[kind]:15}" for kind in KINDS))
        total = Counter(outcome.kind for outcome in self.outcomes)
        lines.append(f"{'all':44}" + "".join(f"{total[kind]:15}" for kind in KINDS))
        for title, kind in (("Could not run", COULD_NOT_RUN), ("Skipped", "skipped")):
            lines += _listed(title, (f"{len(tests)} x {why}" for why, tests in self._reasons(kind).items()))
        lines += _listed("No Bone in the place of", self.suite.left_out)
        explained = ((failure, self.why(failure)) for failure in self.failures)
        lines += _listed("Failed, as expected", (f"{failure.test}: {why}" for failure, why in explained if why))
        lines += _listed("In expected.toml, but no such test fails", self.unused)
        lines += _listed("FAILED", (f"{failure.test}: {failure.reason}" for failure in self.unexplained))
        lines += ["", f"{'FAILED' if self.unexplained else 'All well'}, after {self.seconds:.0f} s ({_versions()})."]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """As JSON, with the names of all tests that did not pass."""
        failures = [
            {"test": failure.test, "error": failure.reason, "expected": self.why(failure), "details": failure.details}
            for failure in self.failures
        ]
        results = {
            "versions": _versions(),
            "seconds": round(self.seconds),
            "files": self._by_file(),
            "failures": failures,
            "could_not_run": self._reasons(COULD_NOT_RUN),
            "skipped": self._reasons("skipped"),
            "left_out": self.suite.left_out,
            "unused_expectations": self.unused,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    def _by_file(self) -> dict[str, Counter[str]]:
        files: dict[str, Counter[str]] = {}
        for outcome in self.outcomes:
            files.setdefault(outcome.file, Counter(dict.fromkeys(KINDS, 0)))[outcome.kind] += 1
        return files

    def _reasons(self, kind: str) -> dict[str, list[str]]:
        tests: dict[str, list[str]] = defaultdict(list)
        for outcome in self.outcomes:
            if outcome.kind == kind:
                tests[outcome.reason].append(outcome.test)
        return dict(sorted(tests.items(), key=lambda entry: -len(entry[1])))


def _listed(title: str, entries: Iterable[str]) -> list[str]:
    lines = [f"  {entry}" for entry in entries]
    return ["", f"{title}:", *lines] if lines else []


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("bone-peft", "peft", "transformers", "torch"))
