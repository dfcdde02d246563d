"""RWKV's binidx: documents of token ids, one after the other in ``NAME.bin``, and where each begins in ``NAME.idx``.

The index is that of Megatron-LM: ``MMIDIDX\\0\\0``, version 1 (8 bytes), the code of a dtype (1 byte), the number of
documents and of boundaries (8 bytes each), all little-endian; then sizes in tokens (int32), places in bytes and
boundaries (int64).
"""

from __future__ import annotations

import ast
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bone_peft.errors import BoneError
from bone_peft.io.ours import FileOf
from bone_peft.io.whole import check_free, whole_file

END = 0
"""The token that ends a document."""

MOST_TOKENS = 2**16
"""Of a vocabulary that is written: a token takes two bytes."""

_MAGIC = b"MMIDIDX\x00\x00"
_INDEX = FileOf(re.compile(re.escape(_MAGIC)))
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_OURS = 8


def read_binidx(prefix: str | Path) -> Iterator[np.ndarray]:
    """The documents of ``prefix.bin``, each ``(tokens,)``, by memory map.

    Raises:
        BoneError: the index is damaged, or says more than there is.
    """
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for file in (index, data):
        if not file.is_file():
            raise BoneError(f"There is no {file}: binidx data is a file .bin and a file .idx beside it.")
    dtype, sizes, places = _index(index)
    held = np.memmap(data, mode="r", dtype=np.uint8) if data.stat().st_size else np.empty(0, np.uint8)
    ends = places + sizes.astype(np.int64) * dtype.itemsize
    if len(sizes) and (sizes.min() < 0 or places.min() < 0 or ends.max() > len(held)):
        raise BoneError(
            f"{index} names documents beyond the end of {data}: one of the two is damaged; write them again."
        )
    for start, end in zip(places, ends, strict=True):
        yield held[start:end].view(dtype)


def _index(file: Path) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    content = file.read_bytes()
    if len(content) >= _HEADER.size:
        magic, version, code, count, boundaries = _HEADER.unpack_from(content)
        whole = len(content) == _HEADER.size + 12 * count + 8 * boundaries
        if magic == _MAGIC and version == 1 and code in _DTYPES and whole:
            sizes = np.frombuffer(content, "<i4", count, _HEADER.size)
            return np.dtype(_DTYPES[code]), sizes, np.frombuffer(content, "<i8", count, _HEADER.size + 4 * count)
    raise BoneError(f"{file} is no whole index of binidx data: write it again, or take another copy.")


def write_binidx(prefix: str | Path, documents: Iterable[Iterable[int]], *, replace: bool = False) -> int:
    """Write ``prefix.bin`` and ``prefix.idx``, uint16, with token 0 behind each document.

    Args:
        prefix: the name that both share.
        documents: their tokens.
        replace: whether binidx data may be there already.

    Returns:
        How many documents.

    Raises:
        BoneError: something is there that may not be replaced, or the disk is full.
    """
    check_free(f"{prefix}.idx", _INDEX, replace=replace)
    if not Path(f"{prefix}.idx").is_file():
        check_free(f"{prefix}.bin", None, replace=False)
    sizes: list[int] = []
    with whole_file(f"{prefix}.bin") as staging, open(staging, "wb") as file:
        for document in documents:
            tokens = np.array([*document, END], dtype="<u2")
            sizes.append(len(tokens))
            file.write(tokens.tobytes())
    places = 2 * np.cumsum([0, *sizes])[:-1]
    with whole_file(f"{prefix}.idx", _INDEX, replace=replace) as staging, open(staging, "wb") as file:
        file.write(_HEADER.pack(_MAGIC, 1, _OURS, len(sizes), len(sizes) + 1))
        file.write(np.array(sizes, "<i4").tobytes())
        file.write(np.array(places, "<i8").tobytes())
        file.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())
    return len(sizes)


def words_of(vocabulary: str | Path) -> dict[int, bytes]:
    """What each token of a vocabulary in RWKV's format stands for.

    Raises:
        BoneError: it is not of this format.
    """
    words: dict[int, bytes] = {}
    try:
        for line in Path(vocabulary).read_text(encoding="utf-8").splitlines():
            number, _, rest = line.partition(" ")
            word = ast.literal_eval(rest.rpartition(" ")[0])
            words[int(number)] = word.encode() if isinstance(word, str) else bytes(word)
    except (ValueError, TypeError, SyntaxError) as error:
        raise BoneError(f"{vocabulary} is no vocabulary of RWKV ({error}): take another copy of it.") from None
    return words
