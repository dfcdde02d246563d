"""A step's rows as one line."""

from __future__ import annotations

from typing import Any

from trl.trainer.sft_trainer import DataCollatorForLanguageModeling


class RowsInOneLine:
    """TRL's padding-free batches, and where in the line there is something to learn.

    A batch has ``input_ids``, ``position_ids`` (from 0 in each row) and ``labels``, each ``(1, tokens)``,
    ``cu_seq_lens_q`` and ``cu_seq_lens_k`` ``(rows + 1,)``, ``max_length_q`` and ``max_length_k``, and, if asked for,
    ``logits_to_keep`` ``(answers,)``, the places where the head is needed, and ``targets`` ``(answers,)``, the tokens
    to be learned there.

    Args:
        pad_token_id: TRL's collator asks for it; a line has no padding.
        most_answers: a line with more gets no ``logits_to_keep``; 0 for none.
    """

    def __init__(self, pad_token_id: int, most_answers: int) -> None:
        self._collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=True)
        self._most_answers = most_answers

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate(rows)
        places = (batch["labels"][0, 1:] != -100).nonzero().flatten()
        if len(places) <= self._most_answers:
            batch["logits_to_keep"], batch["targets"] = places, batch["labels"][0, places + 1]
        return batch
