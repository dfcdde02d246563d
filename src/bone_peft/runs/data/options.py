"""The ``name?key=value&key=value`` form that several sources share."""

from typing import Any
from urllib.parse import parse_qsl

import yaml


def split(source: str) -> tuple[str, dict[str, Any]]:
    """``"a?n=2&b=true"`` to ``("a", {"n": 2, "b": True})``; values are read as YAML."""
    name, _, query = source.partition("?")
    return name, {key: yaml.safe_load(value) for key, value in parse_qsl(query, keep_blank_values=True)}
