"""Bases in RWKV's own format: one ``.pth`` file."""

from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError


def accepts(base: str) -> bool:
    return base.endswith(".pth")


def load(base: str, *, trust_remote_code: bool, **kwargs: Any) -> tuple[Any, Any]:
    if not Path(base).is_file():
        raise BoneError(f"There is no base model at {base!r}; give the path of RWKV's .pth file.")
    from bone_peft.rwkv.pth_model import load_model
    from bone_peft.rwkv.tokenizer import load_tokenizer

    model = load_model(base, **kwargs)
    return model, load_tokenizer(base, model.config.vocab_size)
