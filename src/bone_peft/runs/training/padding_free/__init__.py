"""The rows of a step end to end in one line, no padding between them, and none sees another.

Attention is told where each row starts (``row_attention``), the batch is put together by ``collator``, and ``trial``
looks whether a model takes that: some ask for more than attention to keep rows apart.
"""

from .collator import EqualRowsInOneLine, RowsInOneLine, in_other_rows, lines_for
from .row_attention import by_rows
from .trial import fault

__all__ = ["EqualRowsInOneLine", "RowsInOneLine", "by_rows", "fault", "in_other_rows", "lines_for"]
