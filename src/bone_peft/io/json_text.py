"""JSON that every reader takes: what JSON has no number for is null."""

import json
import math
from typing import Any


def json_text(value: Any) -> str:
    """``value`` as indented JSON, with ``null`` for NaN and infinity."""
    return json.dumps(_with_nulls(value), indent=1, allow_nan=False) + "\n"


def _with_nulls(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _with_nulls(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(inner) for inner in value]
    return value
