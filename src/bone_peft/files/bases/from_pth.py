"""Bases in RWKV's own format: one ``.pth`` file."""

from pathlib import Path
from typing import Any

import torch

from bone_peft.errors import BoneError


def accepts(base: str) -> bool:
    return base.endswith(".pth")


def load(base: str, *, trust_remote_code: bool, **kwargs: Any) -> tuple[Any, Any]:
    _check_there(base)
    from bone_peft.rwkv.pth_model import load_model
    from bone_peft.rwkv.tokenizer import load_tokenizer

    model = load_model(base, **kwargs)
    return model, load_tokenizer(base, model.config.vocab_size)


def empty(base: str, dtype: torch.dtype) -> Any:
    """The model on the meta device."""
    _check_there(base)
    from bone_peft.rwkv.pth_model import empty_model

    return empty_model(base, dtype)


def load_tokenizer(base: str, *, trust_remote_code: bool) -> Any:
    _check_there(base)
    from bone_peft.rwkv import tokenizer

    return tokenizer.load_tokenizer(base, tokenizer.ROWS)


def _check_there(base: str) -> None:
    if not Path(base).is_file():
        raise BoneError(f"There is no base model at {base!r}; give the path of RWKV's .pth file.")
