"""Questions with choices: whether the right one is the most likely."""

from collections.abc import Callable
from typing import Any

from .tokens import encode


def count_right(
    model: Any,
    tokenizer: Any,
    rows: Any,
    losses_of: Callable[[list[tuple[list[int], list[int]]]], list[float]],
    batch_size: int,
) -> int:
    """How many of ``rows`` have no choice of a lower loss (summed over its tokens) than the right one, their first.

    Args:
        rows: with ``choices`` beside ``prompt`` and ``completion``.
        losses_of: of a batch of ``(prompt_ids, completion_ids)``, each row's.
    """
    pairs = [
        (number, encode(_with(row, choice), tokenizer)) for number, row in enumerate(rows) for choice in row["choices"]
    ]
    order = sorted(range(len(pairs)), key=lambda index: sum(map(len, pairs[index][1])))  # less padding
    losses = [0.0] * len(pairs)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for index, loss in zip(batch, losses_of([pairs[index][1] for index in batch]), strict=True):
            losses[index] = loss
    by_row: list[list[float]] = [[] for _ in range(len(rows))]
    for (number, _), loss in zip(pairs, losses, strict=True):
        by_row[number].append(loss)
    return sum(right < min(others) for right, *others in by_row)


def _with(row: dict[str, Any], choice: str) -> dict[str, Any]:
    """The row as if this choice were its answer."""
    completion = row["completion"]
    if isinstance(completion, str):
        return {**row, "completion": choice}
    return {**row, "completion": [{**completion[0], "content": choice}]}
