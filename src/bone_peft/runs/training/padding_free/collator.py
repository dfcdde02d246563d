"""A step's rows as one line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling


class RowsInOneLine:
    """TRL's padding-free batches, and where in the line there is something to learn.

    A batch has ``input_ids``, ``position_ids`` (from 0 in each row) and ``labels``, each ``(1, tokens)``,
    ``cu_seq_lens_q`` and ``cu_seq_lens_k`` ``(rows + 1,)``, ``max_length_q`` and ``max_length_k``, and, if asked for,
    ``logits_to_keep`` ``(answers,)``, the places where the head is needed, and ``targets`` ``(answers,)``, the tokens
    to be learned there.

    Args:
        pad_token_id: of the base.
        most_answers: a line with more gets no ``logits_to_keep``; 0 for none.
        longest_row: if given, lines come in few lengths, so that what is made for one serves again: a row of padding
            behind the others, which they do not see, adds an eighth at most. No row may be longer.
    """

    def __init__(self, pad_token_id: int, most_answers: int, longest_row: int | None = None) -> None:
        self._collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=True)
        self._pad_token_id = pad_token_id
        self._most_answers = most_answers
        self._longest_row = longest_row

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate(rows)
        batch["row_tokens"] = batch["input_ids"].numel()
        places = (batch["labels"][0, 1:] != -100).nonzero().flatten()
        targets = batch["labels"][0, places + 1]
        if self._longest_row is not None:
            self._fill_up(batch, self._longest_row)
            more = _part_of(batch["input_ids"].shape[1], len(places)) - len(places)
            places, targets = pad(places, (0, more)), pad(targets, (0, more), value=-100)
        if len(places) <= self._most_answers:
            batch["logits_to_keep"], batch["targets"] = places, targets
        return batch

    def _fill_up(self, batch: dict[str, Any], longest_row: int) -> None:
        """Add the row of padding, and rows without tokens."""
        tokens = batch["input_ids"].shape[1]
        filler = _round_up(tokens) - tokens
        for name, value in (("input_ids", self._pad_token_id), ("labels", -100)):
            batch[name] = pad(batch[name], (0, filler), value=value)
        if "seq_idx" in batch:
            batch["seq_idx"] = pad(batch["seq_idx"], (0, filler), value=len(batch["cu_seq_lens_q"]) - 1)
        batch["position_ids"] = torch.cat([batch["position_ids"], torch.arange(filler)[None]], dim=1)
        starts: Tensor = batch["cu_seq_lens_q"]
        starts = pad(starts, (0, _round_up(len(starts) + 1) - len(starts)), value=tokens + filler)
        batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = starts
        batch["max_length_q"] = batch["max_length_k"] = max(longest_row, _round_up(filler))


def in_other_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of the same shape with other tokens in each place, in rows of other lengths (the same from behind)."""
    starts: Tensor = batch["cu_seq_lens_q"]
    tokens = batch["input_ids"].shape[1]
    starts = starts[-1] - starts.flip(0)
    rows = torch.arange(len(starts) - 1, device=starts.device)
    row = torch.repeat_interleave(rows, starts.diff(), output_size=tokens)
    positions = torch.arange(tokens, device=starts.device) - starts[row]
    return batch | {
        "input_ids": batch["input_ids"].flip(1),
        "position_ids": positions[None].to(batch["position_ids"]),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
    }


def _round_up(number: int) -> int:
    """The next of the eight numbers between each power of two and the next."""
    step = 1 << max(0, (number - 1).bit_length() - 4)
    return -(-number // step) * step


def _part_of(tokens: int, answers: int) -> int:
    """The next quarter of ``tokens``."""
    return -(-answers * 4 // tokens) * tokens // 4
