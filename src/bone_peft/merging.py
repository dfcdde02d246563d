"""Fold an adapter into its base: a model folder that plain Transformers loads."""

from pathlib import Path

from bone_peft.bases import load_adapter, load_base
from bone_peft.errors import BoneError
from bone_peft.files import whole_folder


def merge(
    base: str,
    adapter: str | Path,
    out: str | Path,
    *,
    dtype: str = "bfloat16",
    force: bool = False,
    safe_merge: bool = True,
) -> None:
    """Write ``base`` with ``adapter`` folded in, its tokenizer and its generation settings to ``out``.

    Args:
        base: as for :func:`bone_peft.bases.load_base`.
        adapter: folder of the adapter.
        out: folder to make; it appears when it is whole.
        dtype: of the merged weights.
        force: replace ``out`` if it exists.
        safe_merge: refuse a merge whose weights are not all finite.

    Raises:
        BoneError: something is missing, does not fit or is not finite; ``out`` exists; the disk is full.
    """
    with whole_folder(out, replace=force) as staging:
        model, tokenizer = load_base(base, dtype=dtype)
        model = load_adapter(model, adapter)
        try:
            merged = model.merge_and_unload(safe_merge=safe_merge)
        except ValueError as error:
            raise BoneError(f"{adapter} cannot be merged: {' '.join(str(error).split())}") from error
        merged.save_pretrained(str(staging))
        tokenizer.save_pretrained(str(staging))
