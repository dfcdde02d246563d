"""The ``name?key=value&key=value`` form that several sources share."""

from typing import Any
from urllib.parse import parse_qsl

from bone_peft.io.yaml_file import parse_yaml


def split(source: str) -> tuple[str, dict[str, Any]]:
    """``"a?n=2&b=true"`` to ``("a", {"n": 2, "b": True})``; values are read as YAML."""
    name, _, query = source.partition("?")
    given = parse_qsl(query, keep_blank_values=True)
    return name, {key: parse_yaml(value, f"{key} in {name}") for key, value in given}
