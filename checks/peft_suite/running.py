"""Runs pytest in the suite's folder, in a process of its own that cannot reach the Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bone_peft.errors import BoneError

from .plugin import RECORD
from .suite import Suite

_ROOT = Path(__file__).parents[2]
_PASSED, _FAILED, _NOTHING = 0, 1, 5


def run_pytest(suite: Suite, hub: Path, record: Path, expression: str, processes: int) -> Path:
    """Run the suite's files.

    Args:
        suite: the tests.
        hub: what stands in for the Hub's cache.
        record: a line of JSON for each outcome is written here.
        expression: which tests, as pytest's ``-k``.
        processes: to run at once.

    Raises:
        BoneError: if pytest found no test, or did not come to its end.
    """
    record.touch()
    plugin = f"{__package__}.plugin"
    options = ["-p", plugin, "-p", "no:cacheprovider", "-o", "addopts=", "-k", expression]
    options += ["-q", "--tb=no", "--no-summary", "--continue-on-collection-errors"]
    # PEFT makes errors of Transformers' deprecations, which a later Transformers has more of.
    options += ["-W", "default", "--disable-warnings"]
    if processes > 1:
        options += ["-n", str(processes)]
    environment = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "HF_HUB_CACHE": str(hub),
        "HF_HUB_OFFLINE": "1",
        "PEFT_DEBUG_WITH_TORCH_COMPILE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
        "TOKENIZERS_PARALLELISM": "false",
        RECORD: str(record),
    }
    files = [f"tests/{name}" for name in suite.files]
    command = [sys.executable, "-m", "pytest", *options, *files]
    code = subprocess.run(command, cwd=suite.folder, env=environment, stdout=sys.stderr, check=False).returncode
    if code == _NOTHING:
        raise BoneError(f"No test in {', '.join(suite.files)} matches {expression!r}: give another -k.")
    if code not in (_PASSED, _FAILED):
        raise BoneError(f"pytest stopped with code {code} before its end: what it printed above says why.")
    return record
