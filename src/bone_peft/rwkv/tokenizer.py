"""The World tokenizer. Its vocabulary comes with the package ``rwkv``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError

VOCABULARY = "rwkv_vocab_v20230424.txt"
ROWS = 2**16
"""Of the embedding of the World models."""

# As the World models were trained to chat; token 0 ends a document.
_CHAT = (
    "{%- for message in messages %}"
    "{{- message['role'] | capitalize + ': ' + message['content'] | trim }}"
    "{{- eos_token if loop.last and message['role'] == 'assistant' else '\n\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"
)


def load_tokenizer(checkpoint: str | Path, vocab_size: int) -> Any:
    """RWKV's tokenizer as a Hugging Face one.

    Args:
        checkpoint: the model's ``.pth`` file. A vocabulary of RWKV's format and name beside it is taken, else World's.
        vocab_size: rows of the model's embedding.

    Raises:
        BoneError: the vocabulary is not of its format, or has tokens that the model has no row for.
    """
    from rwkv7_hf import RWKV7Tokenizer

    vocabulary = vocabulary_of(checkpoint)
    try:
        # Looked at first, for the tokenizer of all of World takes seconds to build.
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
        rows = max(int(line.partition(" ")[0]) for line in lines if line) + 1
        if rows > vocab_size:
            raise BoneError(
                f"{checkpoint} has an embedding of {vocab_size} rows, and {vocabulary} has {rows} tokens: put its own "
                f"{VOCABULARY} beside it."
            )
        tokenizer = RWKV7Tokenizer(str(vocabulary), model_vocab_size=vocab_size)
    except BoneError:
        raise
    except (ValueError, TypeError, SyntaxError) as error:
        raise BoneError(f"{vocabulary} is no vocabulary of RWKV ({error}): take another copy of it.") from None
    tokenizer.chat_template = _CHAT
    return tokenizer


def vocabulary_of(checkpoint: str | Path) -> Path:
    """The vocabulary beside a ``.pth`` file, if there is one, else World's."""
    own = Path(checkpoint).with_name(VOCABULARY)
    return own if own.is_file() else world_vocabulary()


def world_vocabulary() -> Path:
    """The file of the World vocabulary: a line a token."""
    # Importing the package would compile its inference code.
    spec = find_spec("rwkv")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'rwkv'", name="rwkv")
    return Path(next(iter(spec.submodule_search_locations))) / VOCABULARY
