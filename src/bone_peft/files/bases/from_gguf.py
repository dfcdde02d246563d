"""Bases in GGUF files, unpacked into a plain dense model that can be trained and merged."""

from typing import Any

from bone_peft.errors import BoneError
from bone_peft.method.compat.gguf import read_once, unpacking

from ..checkpoints.gguf_file import GgufCheckpoint
from ..gguf_path import accepts, path_of
from ..remote_code import not_run

__all__ = ["accepts", "load", "load_tokenizer"]


def load(base: str, *, trust_remote_code: bool, **kwargs: Any) -> tuple[Any, Any]:
    if "quantization_config" in kwargs:
        raise BoneError(f"quantize does not apply to the GGUF base {base!r}; leave it out.")
    with read_once():
        return _load(base, trust_remote_code, **kwargs)


def load_tokenizer(base: str, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    path = path_of(base)
    _ = GgufCheckpoint(base, "auto").model
    with read_once(), not_run(base):
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=trust_remote_code)


def _load(base: str, trust_remote_code: bool, **kwargs: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = path_of(base)
    checkpoint = GgufCheckpoint(base, "auto")
    # Built within limits, before Transformers builds it without.
    _ = checkpoint.model
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    where["trust_remote_code"] = trust_remote_code
    # Packed weights could be neither adapted nor merged.
    with not_run(base):
        model = AutoModelForCausalLM.from_pretrained(**where, config=checkpoint.config, **unpacking(), **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    # The rest of the world meets this base by the name it was asked for, not by a folder of this machine.
    model.name_or_path = model.config._name_or_path = base
    return model, tokenizer
