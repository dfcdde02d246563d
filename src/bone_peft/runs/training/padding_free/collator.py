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
        longest_row: if given, lines come in few lengths, so that what is made for one serves again: behind the others
            are rows of padding, which they do not see. No row may be longer.
        lengths: how many there are between each power of two and the next. Of 8, a line grows by an eighth at most.
    """

    def __init__(self, pad_token_id: int, most_answers: int, longest_row: int | None = None, lengths: int = 8) -> None:
        self._collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=True)
        self._pad_token_id = pad_token_id
        self._most_answers = most_answers
        self._longest_row = longest_row
        self._lengths = lengths

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate(rows)
        batch["row_tokens"] = batch["input_ids"].numel()
        self._fill_up(batch)
        places = (batch["labels"][0, 1:] != -100).nonzero().flatten()
        targets = batch["labels"][0, places + 1]
        if self._longest_row is not None:
            more = _part_of(batch["input_ids"].shape[1], len(places)) - len(places)
            places, targets = pad(places, (0, more)), pad(targets, (0, more), value=-100)
        if len(places) <= self._most_answers:
            batch["logits_to_keep"], batch["targets"] = places, targets
        return batch

    def _fill_up(self, batch: dict[str, Any]) -> None:
        """Add rows of padding, and rows without tokens."""
        longest_row = self._longest_row
        if longest_row is None:
            return
        tokens = batch["input_ids"].shape[1]
        total = _round_up(tokens, self._lengths)
        filler = [min(longest_row, total - start) for start in range(tokens, total, longest_row)]
        for name, value in (("input_ids", self._pad_token_id), ("labels", -100)):
            batch[name] = pad(batch[name], (0, total - tokens), value=value)
        if "seq_idx" in batch:
            batch["seq_idx"] = pad(batch["seq_idx"], (0, total - tokens), value=len(batch["cu_seq_lens_q"]) - 1)
        positions = [torch.arange(length)[None] for length in filler]
        batch["position_ids"] = torch.cat([batch["position_ids"], *positions], dim=1)
        starts: Tensor = batch["cu_seq_lens_q"]
        starts = torch.cat([starts, starts.new_tensor([tokens + longest_row * n for n in range(1, len(filler))])])
        # As many for each line of this length, whatever is added to it.
        number = _round_up(len(batch["cu_seq_lens_q"]) + total // self._lengths // longest_row + 1, 8)
        starts = pad(starts, (0, number - len(starts)), value=total)
        batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = starts
        batch["max_length_q"] = batch["max_length_k"] = longest_row


class EqualRowsInOneLine(RowsInOneLine):
    """The same for models that compute such a line as a batch, because they go through their rows token by token.

    All rows are as long as the longest of the batch, or the next of the few lengths. What makes them longer is behind
    their own tokens, which do not see it.
    """

    def _fill_up(self, batch: dict[str, Any]) -> None:
        lengths = batch["cu_seq_lens_q"].diff().tolist()
        longest = max(lengths)
        if self._longest_row is not None:
            longest = min(_round_up(longest, self._lengths), self._longest_row)
        for name, value in (("input_ids", self._pad_token_id), ("labels", -100)):
            rows = batch[name][0].split(lengths)
            batch[name] = torch.cat([pad(row, (0, longest - len(row)), value=value) for row in rows])[None]
        places = torch.arange(len(lengths) * longest)
        batch["position_ids"] = (places % longest)[None]
        batch["seq_idx"] = (places // longest)[None].to(torch.int32)
        starts = torch.arange(len(lengths) + 1, dtype=torch.int32) * longest
        batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = starts
        batch["max_length_q"] = batch["max_length_k"] = longest


def lines_for(model: Any) -> type[RowsInOneLine]:
    """How lines are put together for a model, which says if its rows have to be equal (``takes_equal_rows``)."""
    return EqualRowsInOneLine if getattr(model, "takes_equal_rows", False) else RowsInOneLine


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


def _round_up(number: int, parts: int) -> int:
    """The next of so many numbers between each power of two and the next; ``parts`` is a power of two itself."""
    step = 1 << max(0, (number - 1).bit_length() - parts.bit_length())
    return -(-number // step) * step


def _part_of(tokens: int, answers: int) -> int:
    """The next quarter of ``tokens``."""
    return -(-answers * 4 // tokens) * tokens // 4
