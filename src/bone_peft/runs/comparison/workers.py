"""Runs in processes of their own, several at once as far as memory goes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from ..free_memory import free_bytes
from .search import Trial
from .study import Study

_MODULE = "bone_peft.runs.comparison.one_run"
_CONTEXT = 2**30
"""What a process takes of a GPU beside its tensors."""
_AT_ONCE = 4


class Workers:
    """Starts runs of a study, and waits for them.

    Args:
        jobs: how many at once; None goes by the memory of the GPU, and takes one on a CPU, whose cores one run fills.
    """

    def __init__(self, study: Study, sizes: dict[str, int], jobs: int | None) -> None:
        self._study, self._sizes, self._jobs = study, sizes, jobs
        self._running: set[subprocess.Popen[str]] = set()

    def run(self, what: str, trial: Trial) -> dict[str, Any]:
        """``"learn"`` or ``"time"``, by itself. A run that does not come to its end is ``{"failed": why}``."""
        spec: dict[str, Any] = {"study": self._study.to_dict(), "trial": asdict(trial), "what": what}
        spec["size"] = self._sizes.get(trial.method, 0)
        command = [sys.executable, "-m", _MODULE, json.dumps(spec)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._running.add(process)
        try:
            out, err = process.communicate()
        finally:
            self._running.discard(process)
        lines = out.strip().splitlines()
        if process.returncode or not lines:
            said = err.strip().splitlines() or [f"it ended with {process.returncode}"]
            return {"failed": said[-1][:300], "unfinished": True}
        result: dict[str, Any] = json.loads(lines[-1])
        return result

    def run_all(
        self, next_trials: Callable[[], list[Trial]], needs: dict[str, int], done: Callable[[Trial, Any], None]
    ) -> None:
        """Run what ``next_trials`` wants until it wants nothing; it is asked anew whenever a run has ended.

        Args:
            needs: bytes that a run of each method takes.
            done: takes a run and its result.
        """
        jobs, room = self._room()
        running: dict[Future[dict[str, Any]], Trial] = {}
        with ThreadPoolExecutor(max_workers=64) as threads, self._stopping():
            while True:
                taken = sum(needs.get(trial.method, 0) for trial in running.values())
                for trial in next_trials():
                    if trial in running.values():
                        continue
                    need = needs.get(trial.method, 0)
                    if running and (len(running) >= jobs or taken + need > room):
                        continue
                    running[threads.submit(self.run, "learn", trial)] = trial
                    taken += need
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    done(running.pop(future), future.result())

    def _room(self) -> tuple[int, float]:
        """How many runs may go on at once, and the bytes that they may take together."""
        device = torch.accelerator.current_accelerator()
        free = None if device is None else free_bytes(device)
        if self._jobs is not None or free is None:
            return self._jobs or 1, math.inf
        return _AT_ONCE, 0.9 * free

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Whatever ends the study ends its runs."""
        try:
            yield
        except BaseException:
            for process in list(self._running):
                process.terminate()
            raise


def bytes_needed(peak: int) -> int:
    """What a run may take of a GPU, of which a first look saw ``peak`` bytes of tensors: answers take some too."""
    return int(1.3 * peak) + _CONTEXT
