"""``evaluate``: the same rows for a base, a base with an adapter, and a merged model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bone_peft.files.bases import load_adapter, load_base, take_template

from .score import Score, score


@dataclass(frozen=True)
class Subject:
    """A model to score: a base (or merged) model by name, with an adapter folder or without."""

    base: str
    adapter: str | None = None


def subjects_of(base: str | None, adapter: str | None, merged: str | None) -> dict[str, Subject]:
    """The models that the command line's options name, in the order of the table."""
    subjects: dict[str, Subject] = {}
    if base is not None:
        subjects["base"] = Subject(base)
        if adapter is not None:
            subjects["adapter"] = Subject(base, adapter)
    if merged is not None:
        subjects["merged"] = Subject(merged)
    return subjects


def evaluate(
    subjects: dict[str, Subject],
    load_rows: Callable[[Any], Any],
    *,
    dtype: str = "bfloat16",
    device: Any = None,
    trust_remote_code: bool = False,
    on_subject: Callable[[str, int], Callable[[int], None]] | None = None,
    **options: Any,
) -> dict[str, Score]:
    """Score each subject on the same rows.

    Args:
        subjects: by the name they get in the result.
        load_rows: from a tokenizer to rows, usually ``load_data`` with everything else filled in.
        dtype: of the weights.
        device: where to run; None takes an accelerator when there is one.
        trust_remote_code: as for :func:`bone_peft.load_base`.
        on_subject: called with a subject's name and the number of rows; what it returns is called with
            the number of rows done since the last call.
        options: for :func:`bone_peft.runs.evaluation.score`.
    """
    from bone_peft.costs.measure import best_device

    scores: dict[str, Score] = {}
    loaded: tuple[str, Any, Any] | None = None
    adapter = next((subject.adapter for subject in subjects.values() if subject.adapter is not None), None)
    for name, subject in subjects.items():
        if loaded is None or loaded[0] != subject.base:
            loaded = None  # free the old weights first
            model, tokenizer = load_base(
                subject.base, dtype=dtype, device=device or best_device(), trust_remote_code=trust_remote_code
            )
            take_template(tokenizer, adapter)  # the same rows for all
            loaded = (subject.base, model, tokenizer)
        _, model, tokenizer = loaded
        if subject.adapter is not None:
            model = load_adapter(model, subject.adapter)
            loaded = None  # its layers are wrapped now
        rows = load_rows(tokenizer)
        progress = on_subject(name, len(rows)) if on_subject else (lambda count: None)
        scores[name] = score(model, tokenizer, rows, on_rows=progress, **options)
    return scores
