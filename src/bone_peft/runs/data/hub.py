"""All else: a name or folder for ``datasets.load_dataset``, as ``owner/name?split=train&name=config``."""

from typing import Any

from bone_peft.errors import BoneError

from . import options


def read(source: str) -> Any:
    from datasets import Dataset, load_dataset

    name, kwargs = options.split(source)
    try:
        found = load_dataset(name, **{"split": "train", **kwargs})
    except Exception as error:  # the hub, the network, the cache and the files can each fail in their own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise BoneError(
            f"The data set {source!r} cannot be loaded ({reason}); give a .jsonl or .parquet file, "
            "gym:TASK, or a name that `datasets` knows."
        ) from error
    if not isinstance(found, Dataset):
        raise BoneError(f"{source!r} is no single table of rows; name one split, as in {name}?split=train.")
    return found
