"""Keep what is scored out of what is learned."""

import json
from typing import Any


def without(train: Any, held_out: Any, start: str = "") -> Any:
    """Return the rows of ``train`` whose prompt is not in ``held_out``; both as from ``load_data``.

    Documents, whose prompt is ``start`` for all of them, are known by their text.

    Generated tasks with different seeds still repeat small problems (``3 + 4``), and files get concatenated;
    a score over rows that were trained on says nothing.
    """
    seen = set(_keys(held_out, start))
    keep = [index for index, key in enumerate(_keys(train, start)) if key not in seen]
    return train if len(keep) == len(train) else train.select(keep)


def _keys(rows: Any, start: str) -> list[str]:
    return [_key(c if p == start else p) for p, c in zip(rows["prompt"], rows["completion"], strict=True)]


def _key(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt.strip()
    return json.dumps([message | {"content": (message.get("content") or "").strip()} for message in prompt])
