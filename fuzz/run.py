"""The loop: damage, give to the command line, judge."""

from __future__ import annotations

import os
import pickle
import random
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer
from typer.testing import CliRunner

from . import cases

FOUND = Path(__file__).parent / "found"
MAX_SECONDS = 10
MAX_BYTES = 2 * 2**30
_LOADED = 2**29  # what a process holds that has everything imported
_BATCH = 50
_FORBIDDEN = set("\x1b\x07\r\x9b\u202e")


@dataclass
class Outcome:
    """Of one input: ``taken``, ``refused`` or ``crashed``, the fault if it is one, and what it took."""

    happened: str
    fault: str | None
    seconds: float
    peak: int


def cases_of(kind: str, work: Path) -> list[cases.Case]:
    """The cases for ``read``, ``train``, ``generate`` or ``eval``. Their sound files are made in ``work`` once."""
    sources = work / "sources"
    if not sources.exists():
        cases.make_sources(sources)
    sentinel = work / "code-was-run"
    return cases.readers(sentinel, sources) if kind == "read" else cases.runners(kind, sentinel, sources)


def _forget_peak() -> int:
    """Have the system count the most memory of this process anew. Returns what it holds now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _said_of_this_process("VmRSS")


def _said_of_this_process(name: str) -> int:
    """A line of what Linux says of this process, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:")) << 10


def attempt(case: cases.Case, rng: random.Random, work: Path) -> Outcome:
    """Damage one input and judge what becomes of it."""
    given, out, sentinel = work / "given", work / "out", work / "code-was-run"
    for folder in (given, out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case.source, given)
    out.mkdir()
    way = rng.choice(case.ways)
    data = (given / case.name).read_bytes()
    try:
        data = way(data, rng)
    except UnicodeError:  # a text that no file can hold
        data = b"\xff"
    (given / case.name).write_bytes(data)
    happened, fault = "taken", None
    seconds = 0.0
    before = _forget_peak()
    for words in case.commands(given, out):
        start = _worked()
        happened, fault = _judged([str(word) for word in words], out)
        seconds = max(seconds, _worked() - start)
        if fault is not None or happened == "refused":
            break
    if sentinel.exists():
        fault = "ran code"
        sentinel.unlink()
    peak = _said_of_this_process("VmHWM")
    if fault is None and seconds > MAX_SECONDS:
        fault = f"took {seconds:.0f} s"
    if fault is None and peak - before > MAX_BYTES - _LOADED:
        fault = f"took {(peak - before) >> 20} MiB"
    where = f"{case.source.name}/{case.name} by {way.__name__}"
    return Outcome(happened, None if fault is None else f"{where}: {fault}", seconds, peak)


def _worked() -> float:
    """Seconds of the processor, in this process and its children: a busy machine is no fault."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _judged(words: list[str], out: Path) -> tuple[str, str | None]:
    from bone_peft.cli.main import app

    result = CliRunner().invoke(app, words, input="y\ny\n")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "crashed", "".join(traceback.format_exception(result.exception))
    said = result.stderr.strip()
    if _FORBIDDEN & set(result.output):
        return "crashed", f"drew on the screen: {result.output!r}"
    if result.exit_code == 0:
        return "taken", None
    if result.exit_code != 2 or len(said.splitlines()) != 1 or len(said) > 3000 or "Traceback" in said:
        return "crashed", f"exit code {result.exit_code}, and no sentence: {said!r}"
    if words[0] in ("merge", "convert") and list(out.iterdir()):
        return "crashed", f"left {[path.name for path in out.iterdir()]} behind after {said!r}"
    return "refused", None


def attempts(count: int, seed: int, work: Path, kind: str = "read") -> Iterator[tuple[str, str | None]]:
    """Do ``count`` attempts in this process. Yields what happened to each, and the fault if it is one."""
    chosen = cases_of(kind, work)
    for index in range(count):
        outcome = attempt(chosen[index % len(chosen)], random.Random(f"{seed}-{index}"), work)
        yield outcome.happened, outcome.fault


def forked(kind: str, first: int, count: int, seed: int, work: Path) -> Iterator[Outcome]:
    """The same from index ``first`` on, in a child of this process. One that hangs or dies is a fault, and the last."""
    chosen = cases_of(kind, work)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        with os.fdopen(writing, "wb") as pipe:
            for index in range(first, first + count):
                outcome = attempt(chosen[index % len(chosen)], random.Random(f"{seed}-{index}"), work)
                pickle.dump(outcome, pipe)
                pipe.flush()
                if outcome.fault is not None:  # what it was stays in the folder
                    break
        os._exit(0)
    os.close(writing)
    case = chosen[first % len(chosen)]
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        for index in range(first, first + count):
            case = chosen[index % len(chosen)]
            # The command has its own limits; this is for what not even a signal of Python's ends.
            ready, _, _ = select.select([pipe], [], [], 6 * MAX_SECONDS)
            try:
                if not ready:
                    raise TimeoutError
                outcome = pickle.load(pipe)
                yield outcome
                if outcome.fault is not None:
                    break
            except (EOFError, pickle.UnpicklingError, TimeoutError):
                what = "the process died" if ready else f"no end after {6 * MAX_SECONDS} s"
                yield Outcome("crashed", f"{case.source.name}/{case.name}: {what}", 0.0, 0)
                break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main(kind: str = "read", count: int = 10000, seed: int = 1) -> None:
    """Damage COUNT inputs for one KIND of command (read, train, generate or eval) and judge what becomes of them."""
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    totals: Counter[str] = Counter()
    faults: list[str] = []
    slowest, largest, start = 0.0, 0, time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        os.environ["HF_DATASETS_CACHE"] = str(work / "cache")
        _warm()
        done = 0
        while done < count:
            for outcome in forked(kind, done, min(_BATCH, count - done), seed, work):
                done += 1
                totals[outcome.happened] += 1
                slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.peak)
                if outcome.fault is not None:
                    faults.append(outcome.fault)
                    print(f"input {done - 1}: {outcome.fault[-1500:]}", flush=True)
                    if len(faults) == 1:
                        shutil.rmtree(FOUND, ignore_errors=True)
                        shutil.copytree(work / "given", FOUND)
    seconds = time.monotonic() - start
    print(
        f"{kind}: {count} inputs, seed {seed}: {dict(totals)}, {len(faults)} faults, slowest {slowest:.1f} s, largest "
        f"{largest >> 20} MiB, {count / seconds:.1f} inputs/s"
    )
    if faults:
        raise typer.Exit(1)


def _warm() -> None:
    """Import what the commands import, so that every child has it."""
    import torch
    import trl  # noqa: F401

    import bone_peft.cli.main
    import bone_peft.costs.estimation
    import bone_peft.files.merging
    import bone_peft.runs.data
    import bone_peft.runs.evaluation
    import bone_peft.runs.training  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    typer.run(main)
