"""Questions with choices: whether the right one is the most likely."""

from typing import Any

from .likelihood import batches, completion_losses
from .tokens import encode


def count_right(model: Any, tokenizer: Any, rows: Any, batch_size: int) -> int:
    """How many of ``rows`` have a right choice, their first, whose loss (summed over its tokens) is the least.

    Args:
        rows: with ``choices`` beside ``prompt`` and ``completion``.
        batch_size: choices a forward pass.
    """
    asked = [(number, _with(row, choice)) for number, row in enumerate(rows) for choice in row["choices"]]
    encoded = [encode(row, tokenizer) for _, row in asked]
    losses = [0.0] * len(encoded)
    for batch in batches(model, encoded, batch_size):
        for index, loss in zip(batch, completion_losses(model, [encoded[index] for index in batch])[0], strict=True):
            losses[index] = loss
    by_row: list[list[float]] = [[] for _ in range(len(rows))]
    for (number, _), loss in zip(asked, losses, strict=True):
        by_row[number].append(loss)
    return sum(right < min(others) for right, *others in by_row)


def _with(row: dict[str, Any], choice: str) -> dict[str, Any]:
    """The row as if this choice were its answer."""
    completion = row["completion"]
    if isinstance(completion, str):
        return {**row, "completion": choice}
    return {**row, "completion": [{**completion[0], "content": choice}]}
