"""The World tokenizer. Its vocabulary comes with the package ``rwkv``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

VOCABULARY = "rwkv_vocab_v20230424.txt"

# As the World models were trained to chat; token 0 ends a document.
_CHAT = (
    "{%- for message in messages %}"
    "{{- message['role'] | capitalize + ': ' + message['content'] | trim }}"
    "{{- eos_token if loop.last and message['role'] == 'assistant' else '\n\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"
)


def load_tokenizer(vocab_size: int = 65536) -> Any:
    """RWKV's World tokenizer as a Hugging Face one. ``vocab_size`` is the number of rows of the embedding."""
    from rwkv7_hf import RWKV7Tokenizer

    tokenizer = RWKV7Tokenizer(str(_vocabulary()), model_vocab_size=vocab_size)
    tokenizer.chat_template = _CHAT
    return tokenizer


def _vocabulary() -> Path:
    # Importing the package would compile its inference code.
    spec = find_spec("rwkv")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'rwkv'", name="rwkv")
    return Path(next(iter(spec.submodule_search_locations))) / VOCABULARY
