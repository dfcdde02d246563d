"""``merge``: base files and adapters in, base files with the adapters in them out."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from bone_peft.errors import BoneError, explains_missing_extras
from bone_peft.io.ours import FileOf, FolderOf
from bone_peft.io.place import with_home
from bone_peft.io.whole import check_free, whole_file, whole_folder

from ..adapters import read_adapter
from ..bases.given_template import hand_on
from ..checkpoints import Checkpoint, Progress, open_checkpoint
from ..kinds import MERGED_FILE, merged
from .plan import Weighted, plan


@dataclass(frozen=True)
class Merged:
    """What was done.

    Attributes:
        changed: parameters that changed, out of ``tensors``.
        nbytes: written.
        seconds: from start to end.
    """

    out: Path
    changed: int
    tensors: int
    nbytes: int
    seconds: float


@explains_missing_extras
def merge(
    base: str,
    adapters: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    dtype: str = "bfloat16",
    force: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = lambda done, total: None,
) -> Merged:
    """Merge adapters into a base, tensor by tensor, as ``merge_and_unload()`` would.

    Memory stays near the size of one tensor, whatever the size of the model. The output keeps the base's files: shards,
    types, index, config, tokenizer.

    Args:
        base: a model folder, a hub name, a ``.gguf`` file, ``package:NAME``, or an RWKV ``.pth`` file.
        adapters: folder or file of an adapter of any format, or several; they compose as several active ones do.
        out: a new folder (for RWKV a new ``.pth`` file). It appears when it is whole.
        weights: a factor on each adapter's ``dW``; 1 by default.
        dtype: what a GGUF base is unpacked to; all other bases keep theirs.
        force: replace ``out`` if it is a merged model that this package wrote.
        trust_remote_code: as for :func:`bone_peft.files.checkpoints.open_checkpoint`.
        progress: called with bytes written and bytes to write.

    Raises:
        BoneError: something is missing, unsound or does not fit; ``out`` exists; there is no room for it.
    """
    start = time.perf_counter()
    adapters = [adapters] if isinstance(adapters, (str, Path)) else list(adapters)
    kind = MERGED_FILE if Path(base).suffix == ".pth" else merged(with_home(base))
    if isinstance(kind, FileOf) and Path(out).suffix != ".pth":
        raise BoneError(f"A merged RWKV model is a .pth file: call the output {Path(out).name}.pth.")
    place = check_free(out, kind, replace=force, inputs=(base, *adapters))
    given = _given(adapters, weights)
    checkpoint = open_checkpoint(base, task_type=_task_type(given), dtype=dtype, trust_remote_code=trust_remote_code)
    edits = plan(checkpoint, given)
    _check_space(checkpoint, place)
    with _staged(out, kind, force) as staging, _one_thread():
        checkpoint.write(staging, edits, progress)
        if staging.is_dir():
            hand_on(adapters, staging)
        _sync_folder(staging)
    return Merged(Path(out), len(edits), len(checkpoint.tensors), checkpoint.nbytes, time.perf_counter() - start)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Pieces are small and reading and writing take as long: threads would wait for each other more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _given(adapters: Sequence[str | Path], weights: Sequence[float] | None) -> list[Weighted]:
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if not adapters or len(weights) != len(adapters):
        raise BoneError(f"Give one weight for each adapter: {len(weights)} weights, {len(adapters)} adapters.")
    if not all(math.isfinite(weight) for weight in weights):
        raise BoneError("The weight of an adapter has to be a finite number.")
    return [Weighted(read_adapter(path)[0], str(path), w) for path, w in zip(adapters, weights, strict=True)]


def _task_type(given: Sequence[Weighted]) -> str | None:
    tasks = {w.adapter.config.task_type for w in given if w.adapter.config.task_type is not None}
    if len(tasks) > 1:
        raise BoneError(f"These adapters are for different tasks: {', '.join(map(str, sorted(tasks)))}.")
    task = next(iter(tasks), None)
    return None if task is None else str(getattr(task, "value", task))


def _check_space(checkpoint: Checkpoint, out: Path) -> None:
    parent = next(folder for folder in (out.absolute().parent, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if free < checkpoint.nbytes:
        raise BoneError(
            f"{out} needs {checkpoint.nbytes / 1e6:,.1f} MB and {parent} has {free / 1e6:,.1f} MB left: free some "
            "space, or write elsewhere."
        )


def _staged(out: str | Path, kind: FolderOf | FileOf, force: bool) -> AbstractContextManager[Path]:
    if isinstance(kind, FolderOf):
        return whole_folder(out, kind, replace=force)
    return whole_file(out, kind, replace=force)


def _sync_folder(staging: Path) -> None:
    """Names are data of the folder, and have to be on the disk as well before the rename."""
    folder = os.open(staging if staging.is_dir() else staging.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
