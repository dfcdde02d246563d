"""Whole files and folders or none: write beside the target, then rename into place."""

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bone_peft.errors import BoneError

from .leftovers import clear, remove
from .locks import BusyError, locked
from .ours import MANIFEST, FileOf, FolderOf, entries, manifest_text, some
from .place import keep_off, real
from .rename import aside, exchange, put

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# Writers outside Python report the same failure as text: Rust (safetensors) and torch's zip writer.
_FULL_TEXT = re.compile(
    rf"\(os error ({'|'.join(map(str, _FULL))})\)|PytorchStreamWriter failed writing|iostream error|unexpected pos \d+"
)

_LISTED = FolderOf()


def check_free(
    target: str | Path, kind: FolderOf | FileOf | None, *, replace: bool, inputs: Iterable[str | Path | None] = ()
) -> Path:
    """The place to write ``target`` to, after what a killed command left there was tidied up.

    Args:
        target: as the user says it.
        kind: what is to be written. Only a result of the same kind is replaced; with None, any file.
        replace: whether one may be.
        inputs: what is read meanwhile: ``target`` may not be or hold any of it.

    Raises:
        BoneError: something is there that is not to be replaced.
    """
    if Path(target).name in ("", ".."):
        raise BoneError(f"{target} is no name for what is to be written: choose another one.")
    place = real(target)
    keep_off(target, inputs)
    clear(place)
    if not place.exists():
        return place
    if not replace:
        raise BoneError(f"{target} exists already; choose another name, or pass --force to replace it.")
    if place.is_dir() != isinstance(kind, FolderOf):
        there, coming = ("a folder", "a file") if place.is_dir() else ("a file", "a folder")
        raise BoneError(f"{target} is {there}, and {coming} is to be written there: choose another name.")
    keep_off(target, (Path.cwd(),))
    strangers = [] if kind is None else kind.strangers(place)
    if strangers and isinstance(kind, FolderOf):
        raise BoneError(
            f"{target} holds {some(strangers)}, not written by bone: move that away, or choose another name."
        )
    if strangers:
        raise BoneError(f"{target} is not a file that this command wrote: choose another name.")
    return place


@contextmanager
def whole_folder(target: str | Path, kind: FolderOf = _LISTED, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty sibling of ``target``; it becomes ``target``, with a manifest, only if the block ends well.

    Args:
        target: the folder to make; its parents are made when missing.
        kind: what it will be.
        replace: let the new folder take the place of an old one of this kind (which stays whole until then).

    Raises:
        BoneError: ``target`` is not free, or no longer, or the disk is full.
    """
    place = check_free(target, kind, replace=replace)
    with full_disk_is_explained(target), parents_of(place), _beside(place, Path.mkdir) as staging:
        yield staging
        (staging / MANIFEST).write_text(manifest_text(entries(staging)), encoding="utf-8")
        if check_free(target, kind, replace=replace).exists():
            exchange(staging, place)
        else:
            _put(staging, place, target)


@contextmanager
def whole_file(target: str | Path, kind: FileOf | None = None, *, replace: bool = True) -> Iterator[Path]:
    """Yield an empty sibling of ``target``; the file written there becomes ``target`` if the block ends well.

    Args:
        target: the file to make; its parents are made when missing.
        kind: what it will be. Only a file of the same kind is replaced; by default, any file.
        replace: whether one may be.

    Raises:
        BoneError: ``target`` is not free, or no longer, or the disk is full.
    """
    place = check_free(target, kind, replace=replace)
    with full_disk_is_explained(target), parents_of(place), _beside(place, Path.touch) as staging:
        yield staging
        if check_free(target, kind, replace=replace).exists():
            staging.replace(place)
        else:
            _put(staging, place, target)


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
def parents_of(target: Path) -> Iterator[None]:
    """Make the folders above ``target``, and take them away again if nothing came into them."""
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _beside(place: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Something new beside ``place``: locked, so that nobody takes it for a leftover, and removed in the end."""
    with ExitStack() as held:
        while True:
            staging = aside(place, "partial")
            held.callback(remove, staging)  # a signal may come as soon as it is there
            make(staging)
            try:
                held.enter_context(locked(staging))
                break
            except (BusyError, FileNotFoundError):  # somebody tidied up before it was locked
                continue
        held.callback(remove, staging)  # while it is locked
        yield staging


def _put(staging: Path, place: Path, target: str | Path) -> None:
    try:
        put(staging, place)
    except FileExistsError:
        raise BoneError(
            f"{target} appeared while this command worked, and was left alone: choose another name."
        ) from None
