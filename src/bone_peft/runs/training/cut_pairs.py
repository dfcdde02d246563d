"""What ``max_length`` takes away from pairs of answers, counted before training starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CutPairs:
    """Of ``rows`` pairs, how many have an answer cut, and how many nothing is learned from, so that they are left out.

    Attributes:
        nothing: pairs without a token of one of their answers.
        alike: pairs whose answers are the same.
    """

    rows: int
    cut: int
    nothing: int
    alike: int
    max_length: int | None

    @property
    def unanswered(self) -> int:
        """How many are left out."""
        return self.nothing + self.alike

    @classmethod
    def of(cls, tokens: Any, args: Any) -> tuple[CutPairs, list[int]]:
        """Count in whole pairs (``prompt_ids``, ``chosen_ids``, ``rejected_ids``); also which of them are kept."""
        limit, keeps_end = args.max_length, args.truncation_mode == "keep_end"
        cut = nothing = alike = 0
        kept = []
        for index, (prompt, *answers) in enumerate(zip(*(tokens[name] for name in tokens.column_names), strict=True)):
            longest = len(prompt) + max(map(len, answers))
            left = answers
            if limit is not None and longest > limit:
                cut += 1
                room = limit - len(prompt)
                left = [answer[-limit:] if keeps_end else answer[: max(room, 0)] for answer in answers]
            if not all(left):
                nothing += 1
            elif left[0] == left[1]:
                alike += 1
            else:
                kept.append(index)
        return cls(len(tokens), cut, nothing, alike, limit), kept

    def in_words(self, kind: str) -> list[str]:
        """One sentence for each loss there is; none when every pair is whole."""
        said = []
        if self.cut:
            said.append(
                f"{self.cut} of {self.rows} {kind} pairs are longer than {self.max_length} tokens and are cut: "
                "training.max_length (--max-length) sets how much is kept."
            )
        if self.nothing:
            said.append(
                f"{self.nothing} of {self.rows} {kind} pairs have nothing left of an answer: they are left out."
            )
        if self.alike:
            said.append(f"{self.alike} of {self.rows} {kind} pairs have twice the same answer: they are left out.")
        return said
