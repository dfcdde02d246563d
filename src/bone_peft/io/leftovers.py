"""What a killed command left beside its output: put back if it is the old result, else taken away."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from .locks import BusyError, locked


def clear(target: Path) -> None:
    """Tidy up beside ``target``, the place that a command is about to write to. What living processes hold stays."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.(partial|taking|old)")
    try:
        names = sorted(name for name in os.listdir(target.parent) if pattern.fullmatch(name))
    except OSError:
        return
    for left in (target.with_name(name) for name in names):
        if not _abandoned(left):
            continue
        if left.suffix == ".taking" and _is_empty(target):
            remove(target)
        if left.suffix == ".old" and not os.path.lexists(target):
            left.rename(target)
        else:
            remove(left)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; links are deleted, and not what they lead to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _abandoned(path: Path) -> bool:
    try:
        with locked(path) as known:
            return known
    except (OSError, BusyError):
        return False


def _is_empty(path: Path) -> bool:
    if path.is_symlink():
        return False
    return not any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size == 0
