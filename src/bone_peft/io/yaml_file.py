"""YAML of limited size, also when its aliases are written out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from bone_peft.errors import BoneError

from .names import brief

MAX_YAML_BYTES = 2**20
_MOST_VALUES = 10_000
_DEEPEST = 50


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file.

    Raises:
        BoneError: no such file, larger than 1 MiB, or no YAML.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_YAML_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise BoneError(f"{path} cannot be read ({error.strerror}): check the path.") from None
    except UnicodeDecodeError as error:
        raise BoneError(f"{path} is not YAML: {brief(error)}.") from None
    if len(data) > MAX_YAML_BYTES:
        raise BoneError(f"{path} is longer than {MAX_YAML_BYTES} bytes, and no honest file of its kind is.")
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value in ``text``; ``where`` is named in errors."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Dates that are none and numbers of a thousand digits raise what Python raises for them.
        raise BoneError(f"{where} is not YAML: {brief(error).rstrip('.')}.") from None


class _Loader(yaml.SafeLoader):
    """``2e-5`` is a number, as its writers mean it. An alias counts as much as what it stands for."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.depth = 0
        self.sizes: dict[int, int] = {}
        self.total = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        is_alias = self.check_event(yaml.AliasEvent)
        before = self.total
        node = super().compose_node(parent, index)
        self.depth -= 1
        # A node that holds itself is not finished when it is met again.
        self.total += self.sizes.get(id(node), _MOST_VALUES) if is_alias else 1
        if not is_alias:
            self.sizes[id(node)] = self.total - before
        if isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:str" and len(node.value) > 1000:
            raise yaml.YAMLError("it holds a number of more than 1000 digits")
        if self.total > _MOST_VALUES or self.depth > _DEEPEST:
            raise yaml.YAMLError("it holds more values, or deeper ones, than any honest file")
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
