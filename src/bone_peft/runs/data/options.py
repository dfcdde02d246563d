"""The ``name?key=value&key=value`` form that several sources share."""

from typing import Any
from urllib.parse import parse_qsl

import yaml

from bone_peft.errors import BoneError


def split(source: str) -> tuple[str, dict[str, Any]]:
    """``"a?n=2&b=true"`` to ``("a", {"n": 2, "b": True})``; values are read as YAML."""
    name, _, query = source.partition("?")
    return name, {key: _value(source, key, text) for key, text in parse_qsl(query, keep_blank_values=True)}


def _value(source: str, key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BoneError(f"{source}: {text!r} is no value for {key}; write it as in YAML.") from error
