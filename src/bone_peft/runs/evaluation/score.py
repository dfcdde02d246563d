"""``score``: one model on held-out rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bone_peft.errors import BoneError

from .answers import answer_batch
from .choice import count_right
from .final_answer import final_answers, says
from .likelihood import batches, completion_losses
from .matches import Answered, count_matches
from .reach import check_length
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
    limit = max_new_tokens or max(len(completion) for _, completion in encoded) + _SLACK_TOKENS
    expected = [expected_text(completion) for completion in rows["completion"]]
    wanted = None if answer_after is None else final_answers(expected, answer_after)
    matched, right, total, tokens = 0, 0, 0.0, 0
    read: dict[int, str] = {}
    count = len(rows) if answers is None else min(answers, len(rows))
    model.eval()
    for batch in batches(model, encoded, batch_size):
        losses, likely = completion_losses(model, [encoded[index] for index in batch])
        total, tokens = total + sum(losses), tokens + sum(map(len, likely))
        asked = [(index, own) for index, own in zip(batch, likely, strict=True) if index < count]
        if wanted is None:
            answered = [Answered(prompts[index], *encoded[index], own, expected[index]) for index, own in asked]
            matched += count_matches(model, tokenizer, answered, limit)
        elif asked:
            texts = answer_batch(model, tokenizer, [prompts[index] for index, _ in asked], limit)
            for (index, _), text in zip(asked, texts, strict=True):
                read[index] = text
                matched += text == expected[index]
                right += says(text, wanted[index], answer_after)
        on_rows(len(batch))
    if not math.isfinite(total):
        raise BoneError("The loss on these rows is not a finite number: the model computes beyond its dtype; use fp32.")
    chosen = None
    if "choices" in rows.column_names:
        chosen = count_right(model, tokenizer, rows, batch_size)
    kept_rows = range(min(samples, len(rows)))
    unread = [index for index in kept_rows if index not in read]
    for start in range(0, len(unread), batch_size):
        some = unread[start : start + batch_size]
        texts = answer_batch(model, tokenizer, [prompts[index] for index in some], limit)
        read.update(zip(some, texts, strict=True))
    kept = [
        {"prompt": prompt_text(rows[index]["prompt"]), "expected": expected[index], "answer": read[index]}
        for index in kept_rows
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
