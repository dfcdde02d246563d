"""Questions with choices: MMLU's, ARC's and HellaSwag's columns. The right choice is what is learned."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .columns import asked
from .reading import Reading, converted
from .template import check, fill

WHAT = "questions with choices"

_BEGINNINGS = ("ctx",)
_QUESTIONS = ("question", "question_stem", "prompt", *_BEGINNINGS)
_CHOICES = ("choices", "endings", "options")
_RIGHT = ("answer", "answerKey", "label")
_BEGUN, _HEADED = "{prompt} {completion}", "Question: {prompt}\nAnswer: {completion}"


def recognizes(names: Collection[str]) -> bool:
    return all(_first(kinds, names) for kinds in (_QUESTIONS, _CHOICES, _RIGHT)) and "completion" not in names


def rows(dataset: Any, reading: Reading) -> Any:
    """A question and the text of its right choice; all choices beside them, the right one first, if they are wanted.

    A base without chat is asked as benchmarks ask it: what begins a sentence is gone on with, a question has headings.
    """
    names = dataset.column_names
    question, choices, right = (_first(kinds, names) for kinds in (_QUESTIONS, _CHOICES, _RIGHT))
    template = reading.template
    if template is None and not reading.chat:
        template = _BEGUN if question in _BEGINNINGS else _HEADED
    check(template)

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        texts, labels = _texts_and_labels(row[choices])
        if len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
            raise reading.fault(index, f"{choices!r} must hold two texts or more, found {row[choices]!r:.80}.")
        place = _place(row[right], labels, texts)
        if place is None:
            raise reading.fault(index, f"{right!r} must say which of {choices!r} is right, found {row[right]!r:.80}.")
        prompt = reading.text(row, question, index)
        if template is not None:
            filled = [fill(template, prompt, text) for text in texts]
            prompt, texts = filled[0][0], [text for _, text in filled]
        found = asked(prompt, texts[place], reading.chat)
        others = [text for number, text in enumerate(texts) if number != place]
        return found | ({"choices": [texts[place], *others]} if reading.choices else {})

    return converted(dataset, convert, chat=reading.chat, choices=reading.choices)


def _first(kinds: tuple[str, ...], names: Collection[str]) -> str:
    return next((kind for kind in kinds if kind in names), "")


def _texts_and_labels(value: Any) -> tuple[list[Any], list[Any]]:
    """ARC has ``{"text": [...], "label": [...]}``, others a list of texts."""
    if isinstance(value, dict):
        texts = value.get("text")
        labels = value.get("label")
        return (texts if isinstance(texts, list) else []), (labels if isinstance(labels, list) else [])
    return (value if isinstance(value, list) else []), []


def _place(right: Any, labels: list[Any], texts: list[str]) -> int | None:
    """Where the right choice is: told by its label, its text, its letter, or its number from 0."""
    for told in (labels, texts):
        if right in told:
            return told.index(right)
    if isinstance(right, str) and len(right) == 1 and "A" <= right <= "Z":
        number = ord(right) - ord("A")
    elif isinstance(right, int) and not isinstance(right, bool):
        number = right
    elif isinstance(right, str) and right.isdecimal():
        number = int(right)
    else:
        return None
    return number if 0 <= number < len(texts) else None
