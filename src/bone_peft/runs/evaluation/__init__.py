"""How good is it: loss and exact match on held-out rows, and answers to read."""

from .answers import answer_samples, stream_answer
from .evaluate import Subject, evaluate, subjects_of
from .reach import check_reach
from .score import Score, score

__all__ = ["Score", "Subject", "answer_samples", "check_reach", "evaluate", "score", "stream_answer", "subjects_of"]
