"""``.bin`` and ``.pth``: a zip with a pickle. The pickle may build tensors and nothing else."""

from __future__ import annotations

import pickletools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bone_peft.errors import BoneError

from .names import MAX_TENSORS, shown
from .stored import StoredTensor, row_major

MAX_PICKLE_BYTES = 64 * 2**20

# All that a dict of tensors needs. torch's own list for weights_only is longer, and some of it allocates
# whatever the file asks for.
_ALLOWED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|"
    r"torch\.storage (Untyped|Typed)Storage"
)


@dataclass(frozen=True)
class TorchFile:
    """A file of ``torch.save`` that holds a dict of tensors.

    Attributes:
        path: the file.
        tensors: where each tensor lies, in the order of the dict. Several may share bytes.
    """

    path: Path
    tensors: dict[str, StoredTensor]


def read_torch(path: str | Path) -> TorchFile:
    """Find the tensors of a ``.bin`` or ``.pth`` file. None of them is read.

    Raises:
        BoneError: no such file, not a zip of ``torch.save``, a pickle that wants more than tensors, or
            tensors that reach beyond the file.
    """
    path = Path(path)
    if not path.is_file():
        raise BoneError(f"{path} cannot be read: check the path.")
    records = _check_zip(path)
    try:
        # Fake tensors know their place in the file, and hold no bytes.
        with FakeTensorMode():
            found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:
        raise BoneError(f"{path} is damaged, or holds more than tensors: take another copy of it.") from None
    if not isinstance(found, dict) or len(found) > MAX_TENSORS:
        raise BoneError(f"{path} holds no dict of tensors: is it a model or an adapter at all?")
    return TorchFile(path, {name: _place(path, records, name, tensor) for name, tensor in found.items()})


def _check_zip(path: Path) -> dict[int, int]:
    """The length of each record by the place it begins at, if the zip is as torch writes it."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries):
                raise BoneError(
                    f"{path} is a compressed zip, which torch.save does not write: take another copy of it."
                )
            pickles = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1 or len({e.filename for e in entries}) != len(entries):
                raise BoneError(f"{path} is no file of torch.save: take another copy of it.")
            if pickles[0].file_size > MAX_PICKLE_BYTES:
                raise BoneError(f"{path} holds a pickle of {pickles[0].file_size} bytes, and no honest file does.")
            _check_pickle(path, archive.read(pickles[0]))
            return {record_start(file, entry): entry.file_size for entry in entries}
    except BoneError:
        raise
    except Exception:
        # A foreign zip can fail in many ways inside zipfile, and all mean the same.
        raise BoneError(
            f"{path} is cut short, or no file of torch.save (of torch 1.6 or newer): take another copy of it."
        ) from None


def record_start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a zip entry begin: behind its own header, whose length only that header knows."""
    file.seek(entry.header_offset + 26)
    lengths = file.read(4)
    return entry.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _check_pickle(path: Path, pickle: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in ("GLOBAL", "INST") and not _ALLOWED.fullmatch(str(argument)):
            raise BoneError(
                f"{path} would run {shown(str(argument))} when loaded; nothing was run, and the file should "
                "not be trusted."
            )
        if opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            raise BoneError(f"{path} would run code when loaded; nothing was run, and the file should not be trusted.")


def _place(path: Path, records: dict[int, int], name: Any, tensor: Any) -> StoredTensor:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise BoneError(
            f"{path} holds {shown(str(name))}, which is no plain tensor: is it a model or an adapter at all?"
        )
    storage = tensor.untyped_storage()
    begin = getattr(storage, "_checkpoint_offset", None)
    item = tensor.dtype.itemsize
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    elements = sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1 if tensor.numel() else 0
    last = (tensor.storage_offset() + elements) * item
    if begin not in records or min((*shape, *stride, 0)) < 0 or not last <= storage.nbytes() <= records[begin]:
        raise BoneError(f"{path} gives {shown(name)} more bytes than it holds: it is damaged, take another copy of it.")
    return StoredTensor(
        path,
        begin + tensor.storage_offset() * item,
        tensor.dtype,
        shape,
        elements * item,
        None if stride == row_major(shape) or elements <= 1 else stride,
    )
