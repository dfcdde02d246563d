"""A virtual environment for one program, made when it is first asked for and kept."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
TORCH = "torch==2.13.0"  # Its wheels for CPUs serve all that is checked here.


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What the checks that need an environment have in common."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="the Python of an environment; left out, one is made")
    parser.add_argument(
        "--environments", type=Path, default=CHECKOUT / ".venv-programs", help="where those that are made are kept"
    )
    return parser


def python_of(given: argparse.Namespace, name: str, *needs: str, bare: tuple[str, ...] = ()) -> str:
    """The Python with ``needs`` and this checkout, and ``bare``, of which nothing that they ask for is installed.

    If the environment is there and was made for the same, it is taken as it is.
    """
    if given.python:
        return str(given.python.absolute())
    folder = given.environments.absolute() / name
    stamp = folder / "needs.json"
    asked = json.dumps([str(CHECKOUT), TORCH, *needs, "without what they ask for:", *bare])
    python = str(folder / "bin/python")
    if not stamp.exists() or stamp.read_text() != asked:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"Making {folder} ...", file=sys.stderr)
        _done([sys.executable, "-m", "venv", str(folder)])
        (folder / "constraints.txt").write_text(TORCH + "\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--constraint", str(folder / "constraints.txt")]
        _done([*pip, TORCH])
        _done([*pip, *needs, "--editable", str(CHECKOUT)])
        if bare:
            _done([*pip, "--no-deps", *bare])
        stamp.write_text(asked)
    return python


@contextmanager
def activated(python: str, active: bool = True) -> Iterator[None]:
    """Bone in every program of this environment, or in none; in the end in none."""
    bone = [python, "-m", "bone_peft"]
    _done([*bone, "activate" if active else "deactivate"])
    try:
        yield
    finally:
        _done([*bone, "deactivate"])


def run(command: list[str], work: Path, *, fails: bool = False, cwd: Path | None = None, **variables: str) -> str:
    """What a program prints; it runs offline, with its caches in ``work``. If it fails, so does the check.

    With ``fails`` it is the other way round.
    """
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "hf"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return _done(command, fails, cwd=cwd, env=os.environ | quiet | variables)


def _done(command: list[str], fails: bool = False, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    text = done.stdout + done.stderr
    if bool(done.returncode) != fails:
        raise SystemExit(f"{' '.join(command)} {'did not fail' if fails else 'failed'}:\n{text[-2000:]}")
    return text
