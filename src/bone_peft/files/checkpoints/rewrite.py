"""A file of weights written again: bytes that stay are copied, the rest is streamed in their place."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.io.safetensors_file import SafetensorsFile, header_bytes
from bone_peft.io.stored import StoredTensor, row_major
from bone_peft.io.torch_file import TorchFile, record_start

from .checkpoint import Edit, Held, Piece, in_parallel

# Bytes read or written at a time. Larger writes are no faster, and took eight times as long where the kernel had to
# find large pages for them first.
_BLOCK = 256 * 2**10

# Bytes after which the disk is to begin.
_SENT = 128 * 2**20

Added = Mapping[str, Tensor]


def rewrite_safetensors(
    source: SafetensorsFile, out: Path, edits: Mapping[str, Edit], added: Added, wrote: Callable[[int], None]
) -> None:
    """Write ``source`` again. Layout, types and metadata stay; ``added`` tensors come last.

    Args:
        source: the file.
        out: the new file.
        edits: by the name in the file.
        added: tensors that the file did not have.
        wrote: called with the number of bytes of each piece written.
    """
    with open(source.path, "rb") as old, open(out, "wb") as new, sent_meanwhile(new, wrote) as sent:
        if added:
            known = {name: (t.dtype, t.shape) for name, t in source.tensors.items() if t.dtype is not None}
            new.write(header_bytes(known | {n: (t.dtype, tuple(t.shape)) for n, t in added.items()}, source.metadata))
        else:
            new.write(old.read(source.data_start))
        for name, stored in source.tensors.items():
            if name in edits:
                write_pieces(new, edits[name].pieces(stored), stored.nbytes, sent)
            else:
                for block in _blocks(old, stored.offset, stored.nbytes):
                    _write(new, block, sent)
        for tensor in added.values():
            _write(new, _memory(tensor), sent)


def rewrite_torch(source: TorchFile, out: Path, edits: Mapping[str, Edit], wrote: Callable[[int], None]) -> None:
    """Write a file of ``torch.save`` again: same pickle, same records, in the same order.

    Args:
        source: the file.
        out: the new file.
        edits: by the name in the file. A record that an edit touches is held in memory while it is written.
        wrote: called with the number of bytes of each piece written.
    """
    with (
        open(source.path, "rb") as old,
        zipfile.ZipFile(source.path) as archive,
        open(out, "wb") as new,
        sent_meanwhile(new, wrote) as sent,
        zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as written,
    ):
        for entry in archive.infolist():
            if entry.filename.endswith("/.format_version"):
                # It lets torch reckon where records lie, by the habits of its own writer.
                continue
            start = record_start(old, entry)
            inside = {
                name: stored
                for name, stored in source.tensors.items()
                if start <= stored.offset < start + entry.file_size
            }
            info = zipfile.ZipInfo(entry.filename)
            info.file_size = entry.file_size
            # torch maps records of 64-byte alignment, and fills up with an extra field as we do here.
            info.extra = _padding(new.tell() + 30 + len(entry.filename.encode()) + _zip64(entry))
            with written.open(info, "w") as record:
                if not edits.keys().isdisjoint(inside):
                    _write(record, _edited_record(old, start, entry.file_size, inside, edits), sent)
                else:
                    for block in _blocks(old, start, entry.file_size):
                        _write(record, block, sent)


@contextmanager
def sent_meanwhile(file: BinaryIO, wrote: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """Have the disk take what is written while more is computed; at the end it has all of it.

    Yields:
        what is to be called in the place of ``wrote``.
    """
    with ThreadPoolExecutor(1) as disk:
        last: Future[None] | None = None
        waiting = 0

        def send(count: int) -> None:
            nonlocal last, waiting
            wrote(count)
            waiting += count
            if waiting >= _SENT and (last is None or last.done()):
                if last is not None:
                    last.result()
                last, waiting = disk.submit(getattr(os, "fdatasync", os.fsync), file.fileno()), 0

        yield send
        if last is not None:
            last.result()  # a full or broken disk is told once
    sync(file)


def write_torch(out: Path, tensors: Mapping[str, Tensor], wrote: Callable[[int], None]) -> None:
    """Write a new file of ``torch.save``."""
    with open(out, "wb") as file:
        torch.save(dict(tensors), file)
        sync(file)
    wrote(sum(tensor.nbytes for tensor in tensors.values()))


def write_pieces(file: BinaryIO, pieces: Iterable[Piece], nbytes: int, wrote: Callable[[int], None]) -> None:
    """Write the pieces of a tensor of ``nbytes``, row-major, one after the other.

    One thread writes: two would wait for each other at the file, in the kernel, and burn a core over it.
    """
    left = nbytes
    for piece in in_parallel(pieces):
        _write(file, _memory(piece), wrote)
        left -= piece.nbytes
    if left:
        raise AssertionError(f"the pieces of a tensor of {nbytes} bytes have {nbytes - left}")


def _memory(tensor: Tensor) -> memoryview:
    return memoryview(as_bytes(tensor).numpy())  # type: ignore[arg-type]


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, ``(nbytes,)`` uint8, without a copy if it is row-major."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def sync(file: BinaryIO) -> None:
    """Have the bytes on the disk, not only on their way."""
    file.flush()
    os.fsync(file.fileno())


def _write(file: IO[bytes], data: memoryview | bytes, wrote: Callable[[int], None]) -> None:
    for start in range(0, len(data), _BLOCK):
        file.write(data[start : start + _BLOCK])
    wrote(len(data))


def _blocks(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    file.seek(offset)
    while length:
        block = file.read(min(_BLOCK, length))
        if not block:
            raise OSError("a file of the base became shorter while it was copied")
        yield block
        length -= len(block)


def _edited_record(
    file: BinaryIO, start: int, length: int, inside: Mapping[str, StoredTensor], edits: Mapping[str, Edit]
) -> memoryview:
    """The bytes of one storage, with the tensors that lie in it changed.

    Raises:
        BoneError: tensors share bytes, and are not to become the same.
    """
    file.seek(start)
    old = torch.frombuffer(bytearray(file.read(length)), dtype=torch.uint8)
    new = old.clone() if len(inside) > 1 else old
    edited = {n: edits[n].whole(Held(_view(old, stored, start))) for n, stored in inside.items() if n in edits}
    for name, tensor in edited.items():
        _view(new, inside[name], start).copy_(tensor)
    for name, stored in inside.items():
        wanted = edited[name] if name in edited else _view(old, stored, start)
        if not torch.equal(as_bytes(_view(new, stored, start)), as_bytes(wanted)):
            raise BoneError(
                f"{stored.path} holds {name} in the same bytes as another tensor, and merging changes only one of "
                "them: save the base as safetensors first, with save_pretrained()."
            )
    return memoryview(new.numpy())  # type: ignore[arg-type]


def _view(record: Tensor, stored: StoredTensor, start: int) -> Tensor:
    """A tensor of a storage, as a part of its bytes. ``start`` is where the storage lies in the file."""
    begin = stored.offset - start
    view = record[begin : begin + stored.nbytes].view(stored.dtype or torch.uint8)
    return torch.as_strided(view, stored.shape, stored.stride or row_major(stored.shape), view.storage_offset())


def _zip64(entry: zipfile.ZipInfo) -> int:
    return 20 if entry.file_size * 1.05 > zipfile.ZIP64_LIMIT else 0


def _padding(position: int) -> bytes:
    fill = (-(position + 4)) % 64
    return b"FB" + fill.to_bytes(2, "little") + b"Z" * fill
