"""Kills commands of ``bone`` at every change of the file system and at random moments, and looks at what is left."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from . import commands
from .commands import COMMANDS, Command, Templates

HANGS = 300
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class Way:
    """How one attempt ends.

    Attributes:
        change: kill before this change of the file system.
        after: or send ``number`` after so many seconds.
        number: SIGKILL or SIGTERM.
        plain: pretend that the system has no renames but the plain one.
        limit: largest file, in bytes.
    """

    change: int | None = None
    after: float | None = None
    number: int = signal.SIGKILL
    plain: bool = False
    limit: int | None = None


@dataclass
class Ended:
    """What became of a command: its exit code (minus the signal, if one killed it), its output, and its changes."""

    code: int
    said: str
    changes: int
    seconds: float


def run(arguments: list[str], work: Path, way: Way | None = None) -> Ended:
    """Run ``bone`` in a fork of this process."""
    log, counted = work.parent / "log", work.parent / "changes"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = _in_child(arguments, work, way or Way(), log, counted)
        finally:
            os._exit(code)
    if way is not None and way.after is not None:
        time.sleep(way.after)
        os.kill(child, way.number)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(HANGS)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(0)
    seconds = time.monotonic() - started
    changes = int(counted.read_text()) if counted.exists() else 0
    counted.unlink(missing_ok=True)
    return Ended(status, log.read_text(errors="replace"), changes, seconds)


def _in_child(arguments: list[str], work: Path, way: Way, log: Path, counted: Path) -> int:
    from bone_peft.cli.main import main
    from bone_peft.io import rename

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(work)
    if way.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (way.limit, way.limit))
    changes, inside = 0, str(work)

    def changed() -> None:
        nonlocal changes
        changes += 1
        if changes == way.change:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = details
            if flags & _WRITES and isinstance(path, (str, bytes)) and _within(os.fsdecode(path), inside):
                changed()
        elif event in _CHANGES:
            changed()

    known = rename._renameat2

    def renameat2(*given: Any) -> bool:
        # The audit hook does not see it.
        if way.plain:
            return False
        changed()
        done = known(*given)
        changed()
        return done

    rename._renameat2 = renameat2
    sys.addaudithook(hook)
    sys.argv = ["bone", *arguments]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    way.change = None
    if way.limit is None:
        counted.write_text(str(changes))
    return code


def _within(path: str, folder: str) -> bool:
    return os.path.abspath(path).startswith(folder)


def attempt(command: Command, way: Way, templates: Templates, scratch: Path) -> tuple[str, list[str]]:
    """End a command in a way, look, do what a user would do next, and look again."""
    work = scratch / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(templates[command.before], work)
    ended = run(command.arguments, work, way)
    faults = [f"{fault}, after the end" for fault in commands.inputs_changed(work, templates)]
    if "Traceback" in ended.said:
        faults.append(f"a traceback: {ended.said.strip().splitlines()[-1]}")
    faults += command.after_end(work, templates)
    if ended.code == 128 + signal.SIGTERM or way.limit is not None:
        faults += [f"left {name} behind" for name in commands.litter(work)]
    if way.limit is not None and ended.code not in (0, 2):
        faults.append(f"a full disk ends with {ended.code}")
    if ended.code == 2 and (way.limit is None or len(ended.said.strip().splitlines()[-1]) > 400):
        faults.append(f"refused: {ended.said[-300:]}")
    for arguments in command.next_arguments(work, templates):
        again = run(arguments, work)
        if again.code != 0:
            faults.append(f"bone {' '.join(arguments)} then ends with {again.code}: {again.said.strip()[-300:]}")
            break
    else:
        faults += command.after_next(work, templates)
    faults += [f"{fault}, after the next run" for fault in commands.inputs_changed(work, templates)]
    faults += [f"{name} is left after the next run" for name in commands.litter(work)]
    return {0: "done", 2: "refused", -signal.SIGKILL: "killed"}.get(ended.code, f"ended with {ended.code}"), faults


def ways(seconds: float, changes: int, count: int, rng: random.Random) -> list[Way]:
    """Half of the attempts stop at changes, evenly over the command; the others at random moments."""
    at_changes = (count + 1) // 2
    step = max(1, changes / at_changes)
    offset = rng.random() * step
    found = [Way(change=1 + int(offset + step * index), plain=bool(index % 2)) for index in range(at_changes)]
    for index in range(count - at_changes):
        number = signal.SIGTERM if index % 3 == 2 else signal.SIGKILL
        found.append(Way(after=rng.uniform(0, seconds), number=number, plain=rng.random() < 0.3))
    return found


def full_disks(largest: int, count: int, rng: random.Random) -> list[Way]:
    """Limits on the size of a file, from nothing to nearly enough."""
    return [Way(limit=int(largest ** rng.uniform(0, 1))) for _ in range(count)]


def main(
    count: Annotated[int, typer.Option(min=1, help="Attempts, over all commands.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the random moments.")] = 1,
    disk_full: Annotated[bool, typer.Option("--disk-full", help="Let the disk be full instead of killing.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="A command; again for more. Default: all.")] = None,
) -> None:
    """End commands before their end, COUNT times, and judge what is left."""
    only = only or list(COMMANDS)
    rng = random.Random(seed)
    totals: Counter[str] = Counter()
    faults: list[str] = []
    commands.warm()
    with tempfile.TemporaryDirectory() as folder:
        templates, scratch = Templates(Path(folder, "templates"), run), Path(folder, "scratch")
        scratch.mkdir()
        started = time.monotonic()
        for index, name in enumerate(only):
            command = COMMANDS[name]
            share = count * (index + 1) // len(only) - count * index // len(only)
            if disk_full:
                chosen = full_disks(commands.largest_file(templates, command), share, rng)
            else:
                chosen = ways(*templates.seconds_and_changes(command), share, rng)
            for way in chosen:
                happened, found = attempt(command, way, templates, scratch)
                totals[happened] += 1
                faults += [f"{name}, {way}: {fault}" for fault in found]
            print(
                f"{name}: {share} attempts, {len(faults)} faults so far, {time.monotonic() - started:.0f} s", flush=True
            )
    print(f"{count} attempts, seed {seed}: {dict(totals)}, {len(faults)} faults")
    for fault in faults[:20]:
        print(fault)
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
