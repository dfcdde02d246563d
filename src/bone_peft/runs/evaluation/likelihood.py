"""How likely a model finds answers: batches that fit into memory, and the loss of each row in them."""

from collections.abc import Iterator, Sequence
from typing import Any

from ..free_memory import NoRoomError, fits, taking
from .reach import check_reach

Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of its completion."""


def batches(model: Any, rows: Sequence[Row], batch_size: int) -> Iterator[list[int]]:
    """The indices of ``rows``, as many at once as are asked for and fit into memory.

    Rows of like length share a batch: less padding.

    Raises:
        BoneError: a row is beyond the model, or does not even fit by itself.
    """
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    check_reach(model, max(max(prompt + completion) for prompt, completion in rows), max(lengths))
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        batch = order[start : start + batch_size]
        batch = batch[: _rows_that_fit(model, [lengths[index] for index in batch])]
        start += len(batch)
        yield batch


def _rows_that_fit(model: Any, lengths: list[int]) -> int:
    """How many of these rows, from short to long, can be scored at once; one at least.

    Raises:
        BoneError: not even the first.
    """
    words = model.config.get_text_config().vocab_size
    # Logits, and what a softmax makes of them in float32; and which tokens see which.
    needed = [
        row * (words * (2 * model.dtype.itemsize + 8) + length * 4) * length
        for row, length in enumerate(lengths, start=1)
    ]
    count = sum(fits(size, model.device) for size in needed)
    if not count:
        with taking(None):  # one row may take more than the share of a run
            count = int(fits(needed[0], model.device))
    if not count:
        raise NoRoomError(
            f"A row is {lengths[0]:,} tokens long: its score takes {needed[0] / 2**30:.1f} GiB, which are not free; "
            "shorten or drop it."
        )
    return count


def completion_losses(model: Any, batch: Sequence[Row]) -> tuple[list[float], list[list[int]]]:
    """Negative log-likelihood (nats) of each completion, and the most likely token at each of its places.

    There is none for a first token without a prompt before it.

    Args:
        model: gives logits ``(rows, tokens, vocabulary)``; they are scored in fp32.
        batch: the rows.
    """
    import torch
    from torch.nn.functional import cross_entropy

    width = max(len(prompt) + len(completion) for prompt, completion in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, (prompt, completion) in enumerate(batch):
        length = len(prompt) + len(completion)
        ids[row, :length] = torch.tensor(prompt + completion)
        mask[row, :length] = 1
        labels[row, len(prompt) : length] = torch.tensor(completion)
    device = model.device
    with torch.inference_mode():
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        targets = labels[:, 1:].to(device)
        scored = targets != -100
        at_completions = logits[:, :-1][scored]
        counts = scored.sum(1).tolist()
        losses = cross_entropy(at_completions.float(), targets[scored], reduction="none").split(counts)
        likely = at_completions.argmax(-1).split(counts)
        sums = torch.stack([row.sum() for row in losses]).tolist()
    return sums, [row.tolist() for row in likely]
