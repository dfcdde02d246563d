"""How Transformers reads GGUF files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import transformers


def settings_of(**where: Any) -> dict[str, Any]:
    """The settings of the config that a file makes. The class has another name before Transformers 5."""
    config: Any = getattr(transformers, "PreTrainedConfig", None) or transformers.PretrainedConfig
    return config.get_config_dict(**where)[0]


def unpacking() -> dict[str, Any]:
    """Options of ``from_pretrained`` that unpack the weights. Newer versions keep them packed if they are not told."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def is_converted(architecture: str) -> bool:
    """Whether newer versions read this architecture by other rules than ``TENSOR_PROCESSORS``."""
    try:
        from transformers.integrations.gguf.utils import is_gguf_arch_supported
    except ImportError:
        return False
    return is_gguf_arch_supported(architecture)


@contextmanager
def read_once() -> Iterator[None]:
    """Have each GGUF file read once, and each table of names made once, while this lasts.

    Transformers reads the file for the config, the tokenizer and the weights, each time with all words of the
    vocabulary, which takes seconds; and for each module of the model it makes the same table of names.
    """
    import gguf

    if hasattr(gguf.GGUFReader, "cache_info"):
        yield
        return
    before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, original in before.items():
        setattr(gguf, name, cache(original))
    try:
        yield
    finally:
        for name, original in before.items():
            setattr(gguf, name, original)
