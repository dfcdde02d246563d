"""A temporary folder with PEFT's tests in it, changed so that Bone takes part."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from bone_peft.errors import BoneError

from .placeholders import with_placeholders
from .twins import with_bone


@dataclass
class Suite:
    """PEFT's tests with Bone's cases.

    Attributes:
        folder: to run pytest in.
        files: names of the test files that got cases.
        left_out: what of MiSS has no twin, as ``file:line: text``.
    """

    folder: Path
    files: list[str]
    left_out: list[str]

    def choose(self, file: str) -> None:
        """Take only this file.

        Raises:
            BoneError: if there is none of that name.
        """
        name = f"{Path(file).stem}.py"
        if not (self.folder / "tests" / name).exists():
            raise BoneError(f"PEFT has no test file {name}: those with Bone in them are {', '.join(self.files)}.")
        self.files = [name]
        self.left_out = [line for line in self.left_out if line.startswith(f"{name}:")]


def write_suite(source: Path, folder: Path) -> Suite:
    """Copy the tests, with Bone's cases, and make them a package.

    Raises:
        BoneError: if no file has a case of MiSS's to make one from, or ``folder`` has tests already.
    """
    tests = folder / "tests"
    if tests.exists():
        raise BoneError(f"There is a {tests} already: give a new folder.")
    shutil.copytree(source / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
    (tests / "__init__.py").touch()
    if (source / "pyproject.toml").exists():
        shutil.copy(source / "pyproject.toml", folder)
    suite = Suite(folder, [], [])
    for path in sorted(tests.glob("*.py")):
        twinned = with_bone(path.read_text(encoding="utf-8"))
        suite.left_out += [f"{path.name}:{line}" for line in twinned.left_out]
        path.write_text(with_placeholders(twinned.text), encoding="utf-8")
        if twinned.cases and path.name.startswith("test_"):
            suite.files.append(path.name)
    if not suite.files:
        raise BoneError(f"No test in {source} names MissConfig, and Bone's cases are made from those.")
    return suite
