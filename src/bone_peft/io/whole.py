"""Whole files or none: write beside the target, then rename into place."""

import errno
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bone_peft.errors import BoneError

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# Writers outside Python report the same failure as text: Rust (safetensors) and torch's zip writer.
_FULL_TEXT = re.compile(
    rf"\(os error ({'|'.join(map(str, _FULL))})\)|PytorchStreamWriter failed writing|unexpected pos \d+"
)


def check_free(target: Path, *, folder: bool, replace: bool) -> None:
    """Raise a BoneError if something is at ``target`` that a folder (or else a file) may not or cannot replace."""
    if not target.name:
        raise BoneError(f"{target} is no name for what is to be written: choose another one.")
    if not target.exists():
        return
    if not replace:
        raise BoneError(f"{target} exists already; choose another name, or pass --force to replace it.")
    if target.is_dir() != folder:
        there, coming = ("a folder", "a file") if target.is_dir() else ("a file", "a folder")
        raise BoneError(f"{target} is {there}, and {coming} is to be written there: choose another name.")


@contextmanager
def whole_folder(target: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty sibling of ``target``; it becomes ``target`` only if the block ends well.

    Args:
        target: the folder to make; its parents are made when missing.
        replace: put the new folder in the place of an existing one (which stays whole until then).

    Raises:
        BoneError: ``target`` exists and ``replace`` is false, or the disk is full.
    """
    target = Path(target)
    check_free(target, folder=True, replace=replace)
    with full_disk_is_explained(target), _parents_of(target):
        staging = _sibling(target)
        try:
            staging.mkdir()
            yield staging
            _rename_over(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def whole_file(target: str | Path) -> Iterator[Path]:
    """Yield a sibling path of ``target``; the file written there replaces ``target`` if the block ends well."""
    target = Path(target)
    check_free(target, folder=False, replace=True)
    with full_disk_is_explained(target), _parents_of(target):
        staging = _sibling(target)
        try:
            yield staging
            staging.replace(target)
        finally:
            staging.unlink(missing_ok=True)


@contextmanager
def full_disk_is_explained(target: str | Path) -> Iterator[None]:
    """Turn a writer's "disk full" (or "file too large") into a :class:`BoneError` that names ``target``."""
    try:
        yield
    except BoneError:
        raise
    except Exception as error:
        if is_full_disk(error):
            raise BoneError(
                f"No space left while writing {target}; free some space and run the command again "
                "(what was saved before is untouched)."
            ) from error
        raise


def is_full_disk(error: BaseException | None) -> bool:
    """True when ``error``, or anything that caused it, says that a write found no room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if _FULL_TEXT.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _parents_of(target: Path) -> Iterator[None]:
    """Make the folders above ``target``, and take them away again if nothing came into them."""
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _sibling(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")


def _rename_over(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = _sibling(target)
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
