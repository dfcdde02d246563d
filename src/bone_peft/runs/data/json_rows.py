"""Rows of a JSON file as its text has them: numbers keep their spelling, and what is wrong has its line."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bone_peft.errors import BoneError

# No base reads so much at once, and tokenizing it would take many times the memory.
MAX_ROW_BYTES = 16 * 2**20
_BLANK = re.compile(r"\s*")


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, or of one JSON list, each with the line it starts on.

    Raises:
        BoneError: not UTF-8, not JSON, something else than objects, or an object of more than 16 MiB.
    """
    with path.open("rb") as file:
        start = file.read(4)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
            raise BoneError(f"{path} is UTF-16, not UTF-8: convert it, such as with iconv -f UTF-16 -t UTF-8.")
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        yield from _of_list(file, path) if _opens_a_list(file) else _of_lines(file, path)


def _opens_a_list(file: BinaryIO) -> bool:
    place = file.tell()
    first = b" "
    while first.isspace():
        first = file.read(1)
    file.seek(place)
    return first == b"["


def _of_lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        _check_length(len(line), path, number)
        text = _decoded(line, path, number).strip()
        if text:
            row, end = _parsed(text, 0, path, number)
            if end != len(text):
                raise _no_json(path, number, f"more text follows the object at column {end + 1}")
            yield number, row


def _of_list(file: BinaryIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _decoded(file.read(), path, 1)
    line, at, seen = 1, text.index("["), 0
    while True:
        start = _BLANK.match(text, at + 1).end()  # type: ignore[union-attr]
        line += text.count("\n", seen, start)
        if text[start : start + 1] == "]" and text[at] == "[":
            end = start
        else:
            row, end = _parsed(text, start, path, line)
            _check_length(end - start, path, line)
            yield line, row
            line += text.count("\n", start, end)
            start = end
            end = _BLANK.match(text, end).end()  # type: ignore[union-attr]
        line += text.count("\n", start, end)
        at = seen = end
        if text[at : at + 1] == "]":
            if text[at + 1 :].strip():
                raise _no_json(path, line, "more text follows the list")
            return
        if text[at : at + 1] != ",":
            raise _no_json(path, line, "a comma or the end of the list is missing")


def _check_length(length: int, path: Path, number: int) -> None:
    if length > MAX_ROW_BYTES:
        raise BoneError(f"{path}, line {number}: a row of more than {MAX_ROW_BYTES >> 20} MiB; split or drop it.")


def _decoded(text: bytes, path: Path, number: int) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        number += text.count(b"\n", 0, error.start)
        raise BoneError(
            f"{path}, line {number}: a byte that is not UTF-8 (0x{text[error.start]:02x}); save the file as UTF-8, "
            "such as with iconv -f LATIN1 -t UTF-8."
        ) from None


def _parsed(text: str, start: int, path: Path, number: int) -> tuple[dict[str, Any], int]:
    try:
        found, end = _DECODER.raw_decode(text, start)
        if "\\u" in text[start:end]:
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _no_json(path, number + text.count("\n", start, error.pos), error.msg) from None
    except RecursionError:
        raise _no_json(path, number, "it is nested too deeply") from None
    except UnicodeEncodeError:
        raise _no_json(path, number, "half of a surrogate pair (\\ud800 to \\udfff) is no character") from None
    if not isinstance(found, dict):
        raise BoneError(f"{path}, line {number} holds no object; every row must be one, such as {_EXAMPLE}.")
    return found, end


def _no_json(path: Path, number: int, why: str) -> BoneError:
    return BoneError(f"{path}, line {number} is not JSON ({why}); every line, or the one list, must hold objects.")


class Number(str):
    """A number as it is written: a row's text is ``1e3`` or ``1.50`` if the file says so."""


# NaN is Python's way to write that there is none.
_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=lambda name: None)
_EXAMPLE = '{"prompt": "...", "completion": "..."}'
