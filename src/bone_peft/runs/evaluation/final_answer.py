"""The answer that a worked solution ends in: what follows a marker, such as ``####``."""

from decimal import Decimal, InvalidOperation

from bone_peft.errors import BoneError

_AROUND, _BEHIND = " \t*`'\"()[]{}", ".,;:! "


def final_answer(text: str, marker: str) -> str | None:
    """What stands after the last ``marker`` in its line, without what is written around it; None without marker."""
    _, found, after = text.rpartition(marker)
    if not found:
        return None
    lines = after.strip().splitlines()
    return lines[0].strip(_AROUND).rstrip(_BEHIND).rstrip(_AROUND) if lines else ""


def same_answer(one: str, other: str) -> bool:
    """Whether two final answers are the same: as numbers if both are (``1,200``, ``$1200.00``), else by letters."""
    numbers = _number(one), _number(other)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()


def final_answers(texts: list[str], marker: str) -> list[str]:
    """Those of expected answers.

    Raises:
        BoneError: one has no marker, or the marker is no text.
    """
    if not marker:
        raise BoneError("The marker of a final answer is empty: name what stands before it, such as '####'.")
    found = [final_answer(text, marker) for text in texts]
    for number, answer in enumerate(found, start=1):
        if not answer:
            raise BoneError(
                f"The expected answer of row {number} has nothing after {marker!r}: name what is before it."
            )
    return [answer for answer in found if answer]


def says(text: str, wanted: str, marker: str | None) -> bool:
    """Whether an answer ends in the one that is wanted."""
    answer = None if marker is None else final_answer(text, marker)
    return answer is not None and same_answer(answer, wanted)


def _number(text: str) -> Decimal | None:
    bare = text.strip().strip("$€£% ").replace(",", "").replace("_", "")
    try:
        number = Decimal(bare)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
