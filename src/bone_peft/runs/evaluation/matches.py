"""Whether the greedy answer to a row is the expected one, told from a pass over the expected one.

As long as the most likely token is the expected one, the greedy answer is what was read in that pass; and from the
first other token on, most answers cannot become the expected text any more. Few are left to be written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bone_peft.files.bases import ONE_ANSWER

from .answers import greedy_tokens
from .reach import positions_of

_CHANGES_NOTHING = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"),
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("max_length", "max_new_tokens", "use_cache", "cache_implementation", "cache_config", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", *ONE_ANSWER),
}
"""What a generation config may say without a change of greedy answers but for their length."""


def is_plain(model: Any) -> bool:
    """Whether greedy answers of ``model`` are made of the most likely tokens and nothing else."""
    config = getattr(model, "generation_config", None)
    return config is not None and set(config.to_diff_dict()) <= _CHANGES_NOTHING


def ends_of(model: Any) -> frozenset[int]:
    """The tokens that end an answer of ``model``."""
    ends = model.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, Sequence) else [] if ends is None else [ends])


def greedy_start(
    likely: Sequence[int], expected: Sequence[int], ends: frozenset[int], limit: int
) -> tuple[list[int], bool]:
    """How a greedy answer starts.

    Args:
        likely: at each place of the expected answer, the token that is most likely after what was expected before it.
        expected: the tokens of that answer.
        ends: tokens that end an answer.
        limit: most tokens of an answer, at least 1.

    Returns:
        As many of its tokens as can be told, and whether these are all.
    """
    start: list[int] = []
    for token, wanted in zip(likely, expected, strict=True):
        start.append(token)
        if token in ends or len(start) == limit:
            return start, True
        if token != wanted:
            break
    return start, False


def can_become(text: str, expected: str) -> bool:
    """Whether an answer that starts with ``text`` may still be ``expected``, both stripped in the end."""
    # A letter may come in several tokens, and until the last one it is U+FFFD.
    return expected.startswith(text.strip().rstrip("\ufffd").rstrip())


@dataclass(frozen=True)
class Answered:
    """A row, and what a model makes of its expected answer.

    Attributes:
        prompt: its tokens as the model meets them before it answers.
        before, completion: the tokens of the whole row, split where the answer starts.
        likely: at each place of ``completion``, the most likely token.
        text: the expected answer, stripped.
    """

    prompt: list[int]
    before: list[int]
    completion: list[int]
    likely: list[int]
    text: str


def count_matches(model: Any, tokenizer: Any, rows: Sequence[Answered], limit: int) -> int:
    """How many of ``rows`` the model answers with the expected text, greedily, in at most ``limit`` tokens."""
    found = 0
    plain, positions = is_plain(model), positions_of(model)
    left: list[tuple[Answered, list[int], int]] = []
    for row in rows:
        most = limit if positions is None else min(limit, positions - len(row.prompt))
        start: list[int] = []
        is_whole = most < 1
        if plain and not is_whole and row.prompt and row.prompt == row.before:
            start, is_whole = greedy_start(row.likely, row.completion, ends_of(model), most)
        text = tokenizer.decode(start, skip_special_tokens=True)
        if is_whole:
            found += text.strip() == row.text
        elif can_become(text, row.text):
            left.append((row, start, most))
    if not left:
        return found

    def is_enough(index: int, tokens: list[int]) -> bool:
        row, start, most = left[index]
        so_far = (start + tokens)[:most]
        return len(so_far) == most or not can_become(tokenizer.decode(so_far, skip_special_tokens=True), row.text)

    more = max(most - len(start) for _, start, most in left)
    written = greedy_tokens(model, tokenizer, [row.prompt + start for row, start, _ in left], more, is_enough=is_enough)
    for (row, start, most), tokens in zip(left, written, strict=True):
        found += tokenizer.decode((start + tokens)[:most], skip_special_tokens=True).strip() == row.text
    return found
