"""Where PEFT's tests come from: its source distribution, or what the user has."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from bone_peft.errors import BoneError


def peft_source(given: Path | None, cache: Path, scratch: Path) -> Path:
    """The folder that holds PEFT's ``tests/``.

    Args:
        given: a checkout or a tarball; ``None`` downloads the source of the installed PEFT, once.
        cache: keeps downloads.
        scratch: tarballs are unpacked here.

    Raises:
        BoneError: if there is no such file, or no tests in it.
    """
    path = given or _download(version("peft"), cache)
    if not path.exists():
        raise BoneError(f"There is no {path}: give --source a checkout of PEFT, or its source as .tar.gz.")
    folder = path if path.is_dir() else _unpack(path, scratch)
    if not (folder / "tests" / "testing_common.py").exists():
        raise BoneError(f"{path} holds no tests/testing_common.py: it is not PEFT's source, or one without its tests.")
    return folder


def _download(release: str, cache: Path) -> Path:
    path = cache / f"peft-{release}.tar.gz"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    options = ["--no-binary", ":all:", "--no-deps", "--quiet", "--dest", str(cache), f"peft=={release}"]
    result = subprocess.run([sys.executable, "-m", "pip", "download", *options], check=False)
    if result.returncode or not path.exists():
        raise BoneError(f"pip could not download the source of PEFT {release}: give it with --source.")
    return path


def _unpack(path: Path, scratch: Path) -> Path:
    try:
        with tarfile.open(path) as archive:
            archive.extractall(scratch, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise BoneError(f"{path} could not be unpacked: {error}.") from None
    folders = [found for found in scratch.iterdir() if found.is_dir()]
    if len(folders) != 1:
        raise BoneError(f"{path} holds {len(folders)} folders, and PEFT's source is one.")
    return folders[0]
