"""JSON objects of limited size, without doubled keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError

MAX_JSON_BYTES = 16 * 2**20


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        BoneError: no such file, larger than 16 MiB, no JSON, doubled keys, or no object.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise BoneError(f"{path} is {size} bytes long, and no honest file of its kind is: take another copy.")
        text = path.read_bytes()
    except OSError as error:
        raise BoneError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    return parse_object(text, str(path))


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``text``; ``where`` is named in errors."""
    try:
        found = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except _OddJsonError as error:
        raise BoneError(f"{where} {error}: take another copy of the file.") from None
    except (ValueError, RecursionError):
        raise BoneError(f"{where} is no valid JSON: take another copy of the file.") from None
    if not isinstance(found, dict):
        raise BoneError(f"{where} holds no JSON object: take another copy of the file.")
    return found


class _OddJsonError(Exception):
    pass


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _OddJsonError(f"has {_short(next(n for n in names if names.count(n) > 1))} twice")
    return found


def _no_constant(name: str) -> Any:
    # NaN and Infinity are Python's, not JSON's; some configs of the wild hold them as values of no interest.
    return float(name)


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")
