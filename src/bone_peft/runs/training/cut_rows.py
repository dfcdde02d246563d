"""What ``max_length`` takes away from the rows, counted before training starts."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CutRows:
    """Of ``rows`` rows, how many are longer than ``max_length``, and how many have no answer left to learn."""

    rows: int
    cut: int
    unanswered: int
    max_length: int | None

    @classmethod
    def of(cls, tokens: Any, args: Any, packing: bool) -> "CutRows":
        """Count in TRL's tokenized rows (``input_ids`` and ``labels``), before it cuts them as ``args`` say."""
        import numpy as np

        # These two strategies of packing go on with the rest of a row in the next one.
        limit = None if packing and args.packing_strategy != "bfd" else args.max_length
        cut = unanswered = 0
        for batch in tokens.select_columns("labels").with_format("arrow").iter(batch_size=1000):
            labels = batch["labels"].combine_chunks()
            starts, ends = labels.offsets.to_numpy()[:-1], labels.offsets.to_numpy()[1:]
            learned = np.concatenate([[0], np.cumsum(labels.values.to_numpy() != -100)])
            first, last = starts, ends
            if limit is not None:
                cut += int((ends - starts > limit).sum())
                if args.truncation_mode == "keep_end" and not packing:
                    first = np.maximum(starts, ends - limit)
                else:
                    last = np.minimum(ends, starts + limit)
            unanswered += int((learned[last] == learned[first]).sum())
        return cls(len(tokens), cut, unanswered, limit)

    def in_words(self, kind: str) -> list[str]:
        """One sentence for each loss there is; none when every row is whole."""
        said = []
        if self.cut:
            said.append(
                f"{self.cut} of {self.rows} {kind} rows are longer than {self.max_length} tokens and are cut: "
                "training.max_length (--max-length) sets how much is kept."
            )
        if self.unanswered:
            said.append(
                f"{self.unanswered} of {self.rows} {kind} rows have no answer left, so nothing is learned there."
            )
        return said
