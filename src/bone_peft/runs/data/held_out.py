"""Keep what is scored out of what is learned."""

import json
import random
from collections.abc import Iterator
from typing import Any

from bone_peft.errors import BoneError

_LEAST, _MOST, _SHARE = 10, 200, 50


def without(train: Any, held_out: Any, start: str = "") -> Any:
    """Return the rows of ``train`` whose prompt is not in ``held_out``; both as from ``load_data``.

    Documents, whose prompt is ``start`` for all of them, are known by their text. A chat that goes through the
    question of a held-out one is left out, too, wherever it goes on from there.

    Generated tasks with different seeds still repeat small problems (``3 + 4``), and files get concatenated;
    a score over rows that were trained on says nothing.
    """
    seen = set(_keys(held_out, start))
    keep = [index for index, (p, c) in enumerate(_rows(train)) if seen.isdisjoint(_questions(p, c, start))]
    return train if len(keep) == len(train) else train.select(keep)


def split(rows: Any, seed: int, start: str = "") -> tuple[Any, Any]:
    """Rows to learn from, and about a fiftieth of them to judge by (10 to 200), chosen at random.

    Rows with one prompt stay together.

    Raises:
        BoneError: there are too few to split, or too many of them ask the same.
    """
    count = min(max(len(rows) // _SHARE, _LEAST), _MOST)
    if len(rows) < 2 * count:
        raise BoneError(
            f"{len(rows)} rows are too few to hold {count} of them out: give more, or held-out rows by --eval-data."
        )
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(_keys(rows, start)):
        groups.setdefault(key, []).append(index)
    chosen: list[int] = []
    for group in random.Random(seed).sample(list(groups.values()), len(groups)):
        if len(chosen) < count and len(chosen) + len(group) <= 2 * count:
            chosen += group
    held_out = rows.select(sorted(chosen))
    kept = without(rows, held_out, start)
    if len(chosen) < count or len(kept) == 0:
        raise BoneError(
            f"Too many of the {len(rows)} rows ask the same to hold {count} of them out: give held-out rows by "
            "--eval-data."
        )
    return kept, held_out


def _keys(rows: Any, start: str) -> list[str]:
    return [_key(c if p == start else p) for p, c in _rows(rows)]


def _rows(rows: Any) -> Iterator[tuple[Any, Any]]:
    """Prompts and answers; of pairs, the chosen ones."""
    return zip(rows["prompt"], rows["completion" if "completion" in rows.column_names else "chosen"], strict=True)


def _questions(prompt: Any, completion: Any, start: str) -> Iterator[str]:
    """What a row asks: its prompt, and in a chat all that stands before each of its answers."""
    if isinstance(prompt, str):
        yield _key(completion if prompt == start else prompt)
        return
    messages = [*prompt, *completion]
    for index, message in enumerate(messages):
        if index and message["role"] == "assistant":
            yield _key(messages[:index])


def _key(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt.strip()
    return json.dumps([_said(message) for message in prompt], sort_keys=True)


def _said(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what a model is not told of it."""
    told = {name: value for name, value in message.items() if name != "weight" and value is not None}
    said = message.get("content")
    return told | {"content": said.strip()} if isinstance(said, str) else told
