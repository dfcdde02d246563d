"""Kills commands of ``bone`` at every change of the file system and at random moments, and looks at what is left."""

from __future__ import annotations

import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from . import commands
from .commands import COMMANDS, Command, Templates

HANGS = 300
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_FULL = re.compile("No space left|File too large|free some space")
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
        room: what the disk has left, in bytes.
    """

    change: int | None = None
    after: float | None = None
    number: int = signal.SIGKILL
    plain: bool = False
    limit: int | None = None
    room: int | None = None

    @property
    def full(self) -> bool:
        return self.limit is not None or self.room is not None


@dataclass
class Ended:
    """What became of a command: its exit code (minus the signal, if one killed it), its output, and its changes."""

    code: int
    said: str
    changes: int
    seconds: float


def run(arguments: list[str], work: Path, way: Way | None = None) -> Ended:
    """Run ``bone`` in a fork of this process."""
    way = way or Way()
    said, says = os.pipe()
    counted, counts = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = _in_child(arguments, work, way, says, counts)
        finally:
            os._exit(code)
    os.close(says)
    os.close(counts)
    output = b""
    due = [(started + HANGS, signal.SIGKILL)]
    if way.after is not None:
        due.append((started + way.after, signal.Signals(way.number)))
    status = None
    while status is None:
        if due and time.monotonic() >= due[-1][0]:
            os.kill(child, due.pop()[1])
        ready = select.select([said], [], [], 0.002)[0]
        block = os.read(said, 2**16) if ready else b""
        output += block
        if not block:
            ended, found = os.waitpid(child, 0 if ready else os.WNOHANG)
            status = os.waitstatus_to_exitcode(found) if ended else None
    seconds = time.monotonic() - started
    changes = os.read(counted, 100)
    os.close(said)
    os.close(counted)
    return Ended(status, output.decode(errors="replace"), int(changes or 0), seconds)


def _in_child(arguments: list[str], work: Path, way: Way, says: int, counts: int) -> int:
    from bone_peft.cli.main import main
    from bone_peft.io import rename

    sys.stdout = sys.stderr = os.fdopen(says, "w", encoding="utf-8")
    os.dup2(says, 1)
    os.dup2(says, 2)
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
    os.write(counts, str(changes).encode())
    return code


def _within(path: str, folder: str) -> bool:
    return os.path.abspath(path).startswith(folder)


def attempt(command: Command, way: Way, templates: Templates, scratch: Path) -> tuple[str, list[str]]:
    """End a command in a way, look, do what a user would do next, and look again."""
    work = scratch / "work"
    with _disk(work, way.room, templates[command.before]) as give_room:
        ended = run(command.arguments, work, way)
        faults = [f"{fault}, after the end" for fault in commands.inputs_changed(work, templates)]
        if "Traceback" in ended.said:
            faults.append(f"a traceback: {ended.said.strip().splitlines()[-1]}")
        faults += command.after_end(work, templates)
        if ended.code != -signal.SIGKILL:
            faults += [f"{name} is left behind" for name in commands.litter(work)]
        if ended.code not in ((0, 2) if way.full else (0, -way.number, 128 + way.number)):
            faults.append(f"it ends with {ended.code}: {ended.said.strip()[-300:]}")
        if way.full and ended.code == 2 and not _FULL.search(ended.said.strip().splitlines()[-1]):
            faults.append(f"a full disk is called {ended.said.strip()[-300:]}")
        give_room()
        for arguments in command.next_arguments(work, templates):
            again = run(arguments, work)
            if again.code != 0:
                faults.append(f"bone {' '.join(arguments)} then ends with {again.code}: {again.said.strip()[-300:]}")
                break
        else:
            faults += command.after_next(work, templates)
        faults += [f"{fault}, after the next run" for fault in commands.inputs_changed(work, templates)]
        faults += [f"{name} is left after the next run" for name in commands.litter(work)]
    kinds = {0: "done", 2: "refused", -signal.SIGKILL: "killed", 128 + signal.SIGTERM: "terminated"}
    return kinds.get(ended.code, f"ended with {ended.code}"), faults


@contextmanager
def _disk(work: Path, room: int | None, template: Path) -> Iterator[Callable[[], None]]:
    """A copy of a template in ``work``, on a disk with not more ``room`` than that. Yields what gives it room."""
    shutil.rmtree(work, ignore_errors=True)
    if room is None:
        shutil.copytree(template, work)
        yield lambda: None
        return
    work.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", work], check=True)
    try:
        shutil.copytree(template, work, dirs_exist_ok=True)
        used = shutil.disk_usage(work).used
        subprocess.run(["mount", "-o", f"remount,size={used + room}", work], check=True)
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", work], check=True) and None
    finally:
        subprocess.run(["umount", work], check=True)


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


def full_disks(largest: int, total: int, count: int, rng: random.Random) -> list[Way]:
    """Limits on the size of a file, from nothing to enough; where we may mount one, small disks as well."""
    found = [Way(limit=int(largest ** rng.uniform(0, 1))) for _ in range(count)]
    if os.geteuid() == 0:
        found[::2] = [Way(room=4096 * rng.randint(1, total // 4096)) for _ in found[::2]]
    return found


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
                chosen = full_disks(*commands.sizes(templates, command), share, rng)
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
