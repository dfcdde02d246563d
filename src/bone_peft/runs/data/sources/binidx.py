"""RWKV's binidx data: ``NAME`` for ``NAME.bin`` and ``NAME.idx``. Each document becomes text again."""

from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError, explains_missing_extras


def accepts(source: str) -> bool:
    # Other files may have an index of their own beside them.
    own = source != _prefix(source) or not Path(source).is_file()
    return own and Path(f"{_prefix(source)}.idx").is_file()


@explains_missing_extras
def read(source: str) -> Any:
    from datasets import Dataset

    from bone_peft.rwkv.binidx_file import END, read_binidx, words_of
    from bone_peft.rwkv.tokenizer import vocabulary_of

    prefix = _prefix(source)
    words = words_of(vocabulary_of(f"{prefix}.bin"))
    texts = []
    for number, document in enumerate(read_binidx(prefix)):
        tokens = document.tolist()
        while tokens and tokens[-1] == END:
            tokens.pop()
        try:
            texts.append(b"".join(words[token] for token in tokens).decode())
        except (KeyError, UnicodeDecodeError) as error:
            raise BoneError(
                f"Document {number} of {prefix}.bin is no text in the World vocabulary: put its own beside it, or give "
                "the text that it was made of."
            ) from error
    return Dataset.from_dict({"text": [text for text in texts if text]})


def _prefix(source: str) -> str:
    return source[:-4] if source.endswith((".bin", ".idx")) else source
