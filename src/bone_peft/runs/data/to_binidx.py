"""``to_binidx``: rows of any source as RWKV's binidx data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bone_peft.errors import explains_missing_extras

from .load_data import load_data


@explains_missing_extras
def to_binidx(
    source: Any, out: str | Path, *, fields: Any = None, template: str | None = None, replace: bool = False
) -> tuple[int, int]:
    """Write the rows of ``source`` as documents to ``out.bin`` and ``out.idx``.

    Args:
        source, fields, template: as for :func:`bone_peft.runs.data.load_data`; rows are plain text.
        out: the name that both files share. A vocabulary of RWKV's format beside it is taken, else World's.
        replace: whether binidx data may be there already.

    Returns:
        How many documents, and how many tokens.
    """
    from bone_peft.rwkv.binidx_file import MOST_TOKENS, write_binidx
    from bone_peft.rwkv.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(f"{out}.bin", MOST_TOKENS)
    rows = load_data(source, fields=fields, chat=False, template=template)
    count = 0

    def documents() -> Iterator[list[int]]:
        nonlocal count
        for row in rows:
            tokens = tokenizer(row["prompt"] + row["completion"])["input_ids"]
            count += len(tokens) + 1
            yield tokens

    return write_binidx(out, documents(), replace=replace), count
