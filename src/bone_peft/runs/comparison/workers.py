"""Runs in processes of their own, several at once as far as memory goes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from bone_peft.costs.measure import best_device

from ..free_memory import free_bytes
from .search import Trial
from .study import Study

_MODULE = "bone_peft.runs.comparison.one_run"
_CONTEXT = 2**30
"""What a process takes of a GPU beside its tensors."""
_AT_ONCE = 4


class Workers:
    """Starts runs of a study and waits for them. Leaving it, however that comes, ends those that go on.

    Args:
        jobs: how many at once; None goes by the memory of the GPU, and takes one on a CPU, whose cores one run fills.
    """

    def __init__(self, study: Study, sizes: dict[str, int], jobs: int | None) -> None:
        self._study, self._sizes = study, sizes
        self._is_asked = jobs is not None
        self._room = _room()
        self._jobs = jobs or (1 if self._room is None else _AT_ONCE)
        self._needs: dict[str, int] = {}
        self._alone: set[Trial] = set()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._is_over = False

    def __enter__(self) -> Workers:
        self._threads = ThreadPoolExecutor(max_workers=self._jobs)
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._is_over = True
            for process in self._running:
                process.terminate()
        self._threads.shutdown(cancel_futures=True)
        for process in self._running:
            process.wait()

    def run(self, what: str, trial: Trial) -> dict[str, Any]:
        """``"learn"`` or ``"time"``, by itself. A run that does not come to its end is ``{"failed": why}``."""
        spec: dict[str, Any] = {"study": self._study.to_dict(), "trial": asdict(trial), "what": what}
        spec |= {"size": self._sizes.get(trial.method), "parent": os.getpid(), "share": self._share(trial)}
        process = self._started([sys.executable, "-m", _MODULE, json.dumps(spec)])
        try:
            out, err = process.communicate()
        finally:
            self._ended(process)
        result = _result_in(out)
        if process.returncode or result is None:
            said = err.strip().splitlines() or [f"it ended with {process.returncode}"]
            return {"failed": said[-1][:300], "unfinished": True}
        return result

    def run_all(
        self, next_trials: Callable[[], list[Trial]], needs: dict[str, int], done: Callable[[Trial, Any], None]
    ) -> None:
        """Run what ``next_trials`` wants until it wants nothing; it is asked anew whenever a run has ended.

        A run that was lost beside others is tried once more by itself.

        Args:
            needs: bytes that a run of each method takes; one of another method goes by itself.
            done: takes a run and its result.
        """
        self._needs = needs
        running: dict[Future[dict[str, Any]], Trial] = {}
        had_company: set[Trial] = set()
        while True:
            for trial in next_trials():
                if trial not in running.values() and self._may_join(trial, list(running.values())):
                    running[self._threads.submit(self.run, "learn", trial)] = trial
            if not running:
                return
            if len(running) > 1:
                had_company.update(running.values())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial, result = running.pop(future), future.result()
                if result.get("unfinished") and trial in had_company - self._alone:
                    self._alone.add(trial)
                else:
                    done(trial, result)

    def _may_join(self, trial: Trial, running: list[Trial]) -> bool:
        if not running or len(running) >= self._jobs:
            return not running
        both = [trial, *running]
        if not self._alone.isdisjoint(both):
            return False
        return self._is_asked or self._room is None or sum(map(self._need, both)) <= self._room

    def _need(self, trial: Trial) -> float:
        """Bytes that are kept for a run, as many at least as each of :data:`_AT_ONCE` has."""
        return max(self._needs.get(trial.method, math.inf), (self._room or 0) / self._jobs)

    def _share(self, trial: Trial) -> int | None:
        """Bytes of a GPU that a run may take for what it likes; None for all that are free."""
        alone = trial in self._alone or trial.method not in self._needs
        return None if alone or self._room is None else int(self._need(trial))

    def _started(self, command: list[str]) -> subprocess.Popen[str]:
        with self._lock:
            if self._is_over:
                raise RuntimeError("The study is over.")
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self._running.add(process)
            return process

    def _ended(self, process: subprocess.Popen[str]) -> None:
        """It stays where :meth:`__exit__` finds it if it goes on: somebody else was stopped, who waited for it."""
        with self._lock:
            if process.poll() is not None:
                self._running.discard(process)


def _result_in(out: str) -> dict[str, Any] | None:
    """The last line that is one: libraries may have their say after it."""
    for line in reversed(out.splitlines()):
        with suppress(ValueError):
            result = json.loads(line)
            if isinstance(result, dict):
                return result
    return None


def _room() -> float | None:
    """The bytes of a GPU that runs may take together; None without one."""
    device = best_device()
    free = None if device.type == "cpu" else free_bytes(device)
    return None if free is None else 0.9 * free


def bytes_needed(peak: int) -> int:
    """What a run may take of a GPU, of which a first look saw ``peak`` bytes of tensors."""
    return int(1.3 * peak) + _CONTEXT
