"""How good is it: loss and exact match on held-out rows, and answers to read."""

from bone_peft.evaluation.evaluate import Subject, evaluate, subjects_of
from bone_peft.evaluation.generate import answer_samples, stream_answer
from bone_peft.evaluation.score import Score, score

__all__ = ["Score", "Subject", "answer_samples", "evaluate", "score", "stream_answer", "subjects_of"]
