"""Recipes that ship with the package, by name."""

from importlib import resources
from pathlib import Path


def names() -> list[str]:
    """Names of the shipped recipes, as ``bone train`` takes them."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def path_of(name: str) -> Path:
    """The YAML file of the shipped recipe ``name``."""
    return _folder() / f"{name}.yaml"


def _folder() -> Path:
    return Path(str(resources.files("bone_peft.runs.recipes")))
