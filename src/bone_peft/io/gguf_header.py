"""The head of a GGUF file, followed once before other readers believe it: all that it counts has to be there."""

from __future__ import annotations

import mmap
import struct
from math import prod
from pathlib import Path

from bone_peft.errors import BoneError

from .names import MAX_TENSORS, shown

MAX_HEADER_BYTES = 64 * 2**20
_MOST_VALUES = 2**22
"""Of all lists together. The largest vocabularies have a quarter million words, and twice as many merges."""
_MOST_DIMENSIONS = 8
_MOST_FIELDS = 65_536

# Bytes by the number of the type; strings and lists have their own lengths.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _LIST = 8, 9


def check_gguf(path: str | Path) -> int:
    """Follow the fields and tensors that a GGUF file declares.

    Returns:
        How many numbers all its tensors hold.

    Raises:
        BoneError: no GGUF file, cut short, or it counts what is not there.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Head(path, data).follow()
    except OSError as error:
        raise BoneError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    except (struct.error, ValueError):
        raise BoneError(f"{path} is damaged, or no GGUF file: take another copy of it.") from None


class _Head:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 4
        self.values = 0
        # A file of a machine of the other byte order has its version in the upper half.
        self.order = "<" if data[:4] != b"GGUF" or struct.unpack_from("<I", data, 4)[0] & 0xFFFF else ">"

    def follow(self) -> int:
        if self.data[:4] != b"GGUF":
            raise ValueError
        self._skip(4)
        tensors, fields = self._number("Q"), self._number("Q")
        if tensors > MAX_TENSORS or fields > _MOST_FIELDS:
            raise self._too_much(f"{tensors} tensors and {fields} fields")
        for _ in range(fields):
            name = self._string()
            self._value(self._number("I"), name)
        return sum(self._tensor() for _ in range(tensors))

    def _value(self, kind: int, name: bytes) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _LIST:
            kind, count = self._number("I"), self._number("Q")
            self.values += count
            if self.values > _MOST_VALUES:
                raise self._too_much(f"a list of {count} values in {_text(name)}")
            if kind == _LIST:
                raise ValueError
            if kind == _STRING:
                for _ in range(count):
                    self._string()
            else:
                self._skip(count * self._size(kind))
        else:
            self._skip(self._size(kind))

    def _tensor(self) -> int:
        name = self._string()
        dimensions = self._number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise self._too_much(f"{dimensions} dimensions of {_text(name)}")
        count = prod(self._number("Q") for _ in range(dimensions))
        self._skip(4)
        # No type has less than a bit for a number.
        if count > 8 * len(self.data) or self._number("Q") > len(self.data):
            raise self._too_much(f"{count} numbers in {_text(name)}")
        return count

    def _size(self, kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError
        return _SIZES[kind]

    def _string(self) -> bytes:
        length = self._number("Q")
        begin = self.at
        self._skip(length)
        return self.data[begin : begin + min(length, 100)]

    def _number(self, form: str) -> int:
        number = struct.unpack_from(self.order + form, self.data, self.at)[0]
        self._skip(struct.calcsize("=" + form))
        return number

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > min(len(self.data), MAX_HEADER_BYTES):
            raise ValueError

    def _too_much(self, what: str) -> BoneError:
        return BoneError(
            f"{self.path} declares {what}, which it does not hold: it is damaged, take another copy of it."
        )


def _text(name: bytes) -> str:
    return shown(name.decode("utf-8", "replace"))
