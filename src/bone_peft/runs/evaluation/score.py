"""``score``: one model on held-out rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bone_peft.errors import BoneError

from ..free_memory import fits
from .answers import answer_batch
from .choice import count_right
from .final_answer import final_answers, says
from .matches import Answered, count_matches
from .reach import check_length, check_reach
from .tokens import encode, encode_prompts, expected_text, prompt_text

# An answer longer than the longest expected one cannot match, so generation may stop there; the slack is for
# answers that spell the same text with other tokens.
_SLACK_TOKENS = 8


@dataclass
class Score:
    """What held-out rows say about one model.

    Attributes:
        loss: mean negative log-likelihood per completion token (nats), end token included.
        exact_match: share of the answered rows, in ``[0, 1]``, whose greedy answer equals the expected text, both
            stripped.
        rows: how many rows the loss is of.
        tokens: how many completion tokens the loss is a mean of.
        samples: the first few ``{"prompt", "expected", "answer"}``.
        answered: how many rows were answered.
        final_answer: share of them whose answer says the same after the marker, if there is one to go by.
        choice: share of ``rows`` whose right choice is the most likely one, if they have choices.
    """

    loss: float
    exact_match: float
    rows: int
    tokens: int
    samples: list[dict[str, str]] = field(repr=False)
    answered: int = 0
    final_answer: float | None = None
    choice: float | None = None


def score(
    model: Any,
    tokenizer: Any,
    rows: Any,
    *,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    samples: int = 6,
    answers: int | None = None,
    answer_after: str | None = None,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Score:
    """Loss and exact match of ``model`` on ``rows`` (from ``load_data``).

    Args:
        batch_size: rows a forward pass.
        max_new_tokens: longest answer; None takes the longest expected one and a little more.
        samples: how many answers to keep for reading.
        answers: so many rows, the first, are answered, at least one; None for all.
        answer_after: the marker before the final answer of a worked one, such as ``"####"``. Whole answers are written
            then.
        on_rows: called with the number of rows done since the last call.
    """
    check_length(model, (prompt_text(row["prompt"]) + expected_text(row["completion"]) for row in rows))
    encoded = [encode(row, tokenizer) for row in rows]
    prompts = encode_prompts(rows, tokenizer)
    check_reach(
        model,
        max(max(prompt + completion) for prompt, completion in encoded),
        max(len(prompt) + len(completion) for prompt, completion in encoded),
    )
    limit = max_new_tokens or max(len(completion) for _, completion in encoded) + _SLACK_TOKENS
    expected = [expected_text(completion) for completion in rows["completion"]]
    wanted = None if answer_after is None else final_answers(expected, answer_after)
    matched, right, total, tokens = 0, 0, 0.0, 0
    count = len(rows) if answers is None else min(answers, len(rows))
    # Rows of like length share a batch: less padding.
    order = sorted(range(len(rows)), key=lambda index: len(encoded[index][0]) + len(encoded[index][1]))
    model.eval()
    start = 0
    while start < len(order):
        batch = order[start : start + batch_size]
        longest = [len(prompt) + len(completion) for prompt, completion in (encoded[index] for index in batch)]
        batch = batch[: _rows_that_fit(model, longest)]
        start += len(batch)
        losses, likely = completion_losses(model, [encoded[index] for index in batch])
        total, tokens = total + sum(losses), tokens + sum(map(len, likely))
        asked = [(index, own) for index, own in zip(batch, likely, strict=True) if index < count]
        if wanted is None:
            answered = [Answered(prompts[index], *encoded[index], own, expected[index]) for index, own in asked]
            matched += count_matches(model, tokenizer, answered, limit)
        elif asked:
            texts = answer_batch(model, tokenizer, [prompts[index] for index, _ in asked], limit)
            for (index, _), text in zip(asked, texts, strict=True):
                matched += text == expected[index]
                right += says(text, wanted[index], answer_after)
        on_rows(len(batch))
    if not math.isfinite(total):
        raise BoneError("The loss on these rows is not a finite number: the model computes beyond its dtype; use fp32.")
    chosen = None
    if "choices" in rows.column_names:
        chosen = count_right(model, tokenizer, rows, lambda some: completion_losses(model, some)[0], batch_size)
    read: list[str] = []
    for start in range(0, min(samples, len(rows)), batch_size):
        some = prompts[start : min(start + batch_size, samples)]
        read += answer_batch(model, tokenizer, some, limit)
    kept = [
        {"prompt": prompt_text(rows[index]["prompt"]), "expected": expected[index], "answer": answer}
        for index, answer in enumerate(read)
    ]
    return Score(
        loss=total / tokens,
        exact_match=matched / count,
        rows=len(rows),
        tokens=tokens,
        samples=kept,
        answered=count,
        final_answer=None if wanted is None else right / count,
        choice=None if chosen is None else chosen / len(rows),
    )


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
        raise BoneError(
            f"A row is {lengths[0]:,} tokens long: its score takes {needed[0] / 2**30:.1f} GiB, which are not free; "
            "shorten or drop it."
        )
    return count


def completion_losses(model: Any, batch: list[tuple[list[int], list[int]]]) -> tuple[list[float], list[list[int]]]:
    """Negative log-likelihood (nats) of each completion, and the most likely token at each of its places.

    There is none for a first token without a prompt before it.

    Args:
        model: gives logits ``(rows, tokens, vocabulary)``; they are scored in fp32.
        batch: ``(prompt_ids, completion_ids)`` a row.
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
