"""Generated, verifiable tasks of the package ``reasoning-gym``: ``gym:chain_sum?size=500&seed=1``.

``worked=true`` takes the way to the answer as the completion, where a task has it: ``gym:gsm_symbolic?worked=true``.
"""

import dataclasses
import difflib
from typing import Any

from bone_peft.errors import BoneError

from .. import options

_PREFIX = "gym:"
# reasoning-gym draws a seed when none is given; a run that cannot be repeated is no default.
_DEFAULTS = {"size": 1000, "seed": 0}
_WORKED = "answer_cot"


def accepts(source: str) -> bool:
    return source.startswith(_PREFIX)


def read(source: str) -> Any:
    from datasets import Dataset
    from reasoning_gym.factory import DATASETS, create_dataset

    task, given = options.split(source.removeprefix(_PREFIX))
    worked = given.pop("worked", False)
    if task not in DATASETS:
        raise BoneError(f"reasoning-gym has no task {task!r}{_nearest(task, DATASETS)}.")
    known = [field.name for field in dataclasses.fields(DATASETS[task][1])]
    for key in given:
        if key not in known:
            raise BoneError(f"gym:{task} has no option {key!r}{_nearest(key, known)}; it has {', '.join(known)}.")
    if not isinstance(worked, bool):
        raise BoneError(f"worked in {source} must be true or false, found {worked!r}.")
    try:
        problems = create_dataset(task, **{**_DEFAULTS, **given})
        columns = [(p["question"], p["metadata"].get(_WORKED) if worked else p["answer"]) for p in problems]
        if worked and not all(answer for _, answer in columns):
            raise BoneError(f"gym:{task} has no worked answers, as gym:gsm_symbolic has: leave worked out.")
        return Dataset.from_dict({"prompt": [q for q, _ in columns], "completion": [a for _, a in columns]})
    except BoneError:
        raise
    except Exception as error:  # each task checks its options in its own way, or not at all
        reason = " ".join(str(error).split()).rstrip(".") or "its options do not fit together"
        raise BoneError(f"{source} cannot be generated: {reason}.") from error


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
