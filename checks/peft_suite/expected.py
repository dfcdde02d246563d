"""``expected.toml``: tests that fail with Bone because they do not apply to it, each with a sentence that says why."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).with_name("expected.toml")


@dataclass
class Expectation:
    pattern: str
    why: str

    def fits(self, test: str) -> bool:
        """Whether this is about ``test``. ``*`` is the only sign, as ids of tests are full of brackets."""
        return re.fullmatch(".*".join(map(re.escape, self.pattern.split("*"))), test) is not None


def expectations(path: Path = _FILE) -> list[Expectation]:
    return [Expectation(pattern, why) for pattern, why in tomllib.loads(path.read_text(encoding="utf-8")).items()]
