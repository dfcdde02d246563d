"""Safetensors: the header, checked against the file before any of it is believed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from bone_peft.errors import BoneError

from .json_file import parse_object
from .names import MAX_TENSORS, shown
from .stored import StoredTensor

MAX_HEADER_BYTES = 16 * 2**20

# Bits of an element, and torch's type where it has one that stores the same bytes.
_DTYPES: dict[str, tuple[int, torch.dtype | None]] = {
    "BOOL": (8, torch.bool),
    "U8": (8, torch.uint8),
    "I8": (8, torch.int8),
    "F8_E5M2": (8, torch.float8_e5m2),
    "F8_E4M3": (8, torch.float8_e4m3fn),
    "F8_E8M0": (8, getattr(torch, "float8_e8m0fnu", None)),
    "F8_E4M3FNUZ": (8, torch.float8_e4m3fnuz),
    "F8_E5M2FNUZ": (8, torch.float8_e5m2fnuz),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "I16": (16, torch.int16),
    "U16": (16, torch.uint16),
    "F16": (16, torch.float16),
    "BF16": (16, torch.bfloat16),
    "I32": (32, torch.int32),
    "U32": (32, torch.uint32),
    "F32": (32, torch.float32),
    "C64": (64, torch.complex64),
    "F64": (64, torch.float64),
    "I64": (64, torch.int64),
    "U64": (64, torch.uint64),
}


@dataclass(frozen=True)
class SafetensorsFile:
    """A file whose header is sound.

    Attributes:
        path: the file.
        tensors: where each tensor lies, in the order of their bytes.
        metadata: the writer's own notes.
        data_start: where the tensors begin, in bytes.
    """

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    data_start: int


def read_safetensors(path: str | Path) -> SafetensorsFile:
    """Read and check the header of a safetensors file.

    Raises:
        BoneError: the header is no JSON, too large, or says what cannot be true of this file: a type that is
            not there, a size that is not that of the shape, overlaps, holes, bytes missing or left over.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise BoneError(f"{path} is cut short or no safetensors file: take another copy of it.")
            if length > MAX_HEADER_BYTES:
                raise BoneError(
                    f"{path} has a header of {length} bytes, and no honest file has: take another copy of it."
                )
            text = file.read(length)
    except OSError as error:
        raise BoneError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    header = parse_object(text, f"The header of {path}")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BoneError(f"The metadata in the header of {path} is not text: take another copy of it.")
    if len(header) > MAX_TENSORS:
        raise BoneError(f"{path} declares {len(header)} tensors, and no honest file does: take another copy of it.")

    data_start = 8 + length
    entries = [(name, *_entry(path, name, entry)) for name, entry in header.items()]
    entries.sort(key=lambda entry: entry[3:])
    tensors: dict[str, StoredTensor] = {}
    end = 0
    for name, dtype, shape, begin, stop in entries:
        if begin != end:
            raise BoneError(
                f"{path} puts {shown(name)} at byte {begin} of its data where byte {end} is next: it is "
                "damaged, take another copy of it."
            )
        tensors[name] = StoredTensor(path, data_start + begin, dtype, shape, stop - begin)
        end = stop
    if data_start + end != size:
        raise BoneError(
            f"{path} declares {end} bytes of tensors and holds {size - data_start}: it is damaged or cut "
            "short, take another copy of it."
        )
    return SafetensorsFile(path, tensors, metadata, data_start)


def _entry(path: Path, name: str, entry: Any) -> tuple[torch.dtype | None, tuple[int, ...], int, int]:
    """The checked ``(dtype, shape, begin, end)`` of one header entry."""
    problem = BoneError(
        f"{path} describes {shown(name)} in a way that makes no sense: it is damaged, take another copy."
    )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise problem
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise problem
    if dtype not in _DTYPES:
        raise BoneError(f"{path} holds {shown(name)} as {shown(dtype)}, a type that is not there: is it damaged?")
    bits, torch_dtype = _DTYPES[dtype]
    begin, end = offsets
    if begin > end or prod(shape) * bits != (end - begin) * 8:
        raise BoneError(
            f"{path} gives {shown(name)} {end - begin} bytes, which is not the size of {dtype} "
            f"{_shape_text(shape)}: it is damaged, take another copy of it."
        )
    return torch_dtype, tuple(shape), begin, end


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63 for size in value)
    )


def _shape_text(shape: list[int]) -> str:
    return "x".join(map(str, shape[:8])) or "()"


def header_bytes(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Length and header of a file that holds ``tensors``, ``(dtype, shape)`` by name, one after the other."""
    names = {dtype: name for name, (_, dtype) in _DTYPES.items() if dtype is not None}
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
