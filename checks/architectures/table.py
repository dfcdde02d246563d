"""``docs/architectures.md``, written from the results alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .kinds import CHOSEN, KINDS
from .results import Row, Rows, outcome

_INTRO = """\
# Architectures

Which models of Transformers Bone works on, tried one by one. This page is written by `python -m checks.architectures`
from `checks/architectures/results.jsonl`.

Each architecture was built tiny, with random weights, and adapted by each variant (Bone, Bat, input-shared Bat and
Bottleneck) with `target_modules="all-linear"`. **Right** means that all of this holds, in float32 on a CPU:

- The adapted model starts as the bare one.
- Every adapted layer has an effect, alone.
- Its trained tensors get a gradient, in `train()` and in `eval()`: the one that they have in a bare model with the
  weights `W + dW`.
- Training computes what inference does, if that is so in the bare model.
- Merged, the model computes what it did unmerged. Unmerged again, every weight is what it was, bit for bit.
- Saved and loaded, it computes the same.
- Each linear layer that is not adapted is the model's head, is trained whole beside the adapter (the classifier of
  sequence classification), or is skipped: a warning names it, and so does `exclude_modules` of the saved config.

**Refused** means that the model is not adapted, and an error says why. **Wrong** means that something does not hold.
An architecture **does not run** if the tiny bare model failed, mostly because shrinking its config did not suit it:
nothing is known about it. Nor is anything about a layer that the bare model does not use with the inputs of this
check; these are listed.

This tells whether an architecture is computed rightly, and not how well it learns. Half precision, quantized layers,
GPUs and several devices are not in it.

The versions: {versions}. To repeat it (about {minutes} minutes on one core, no network):

    python -m checks.architectures --again --table docs/architectures.md
"""
_STAR = "\\*"
_METHODS = {"bone": "Bone", "bat": "Bat", "bat-input": "input-shared Bat", "bottleneck": "Bottleneck"}


def table(results: Rows) -> str:
    """The page.

    Raises:
        ValueError: if an architecture or a variant has no result, or they are of several versions.
    """
    known = [(kind, name) for kind, names in KINDS.items() for name in names]
    missing = [key for key in known if key not in results or not _is_whole(results[key])]
    if missing:
        raise ValueError(f"{len(missing)} architectures have not been tried with all variants, such as {missing[0]}.")
    rows = [results[key] for key in known]
    found = sorted({row["versions"] for row in rows})
    if len(found) > 1:
        raise ValueError(f"the results are of several versions: {'; '.join(found)}.")
    minutes = max(1, round(sum(row["seconds"] for row in rows) / 60))
    sections = [
        _counts(rows),
        _skipped(rows),
        _refused(rows),
        _wrong(rows),
        _unused(rows),
        _not_run(rows),
        _right(rows),
    ]
    page = [_INTRO.format(versions=found[0], minutes=minutes)]
    page += ["\n".join(section) + "\n" for section in sections]
    return "\n".join(page)


def _is_whole(row: Row) -> bool:
    return "fails" in row or set(row["methods"]) == set(_METHODS)


def _counts(rows: list[Row]) -> Iterator[str]:
    yield "## Counts\n"
    yield "| kind | architectures | run | right | of these, with layers skipped | refused | wrong |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for kind in KINDS:
        tried = [row for row in rows if row["kind"] == kind]
        outcomes = [outcome(row) for row in tried]
        run = len(tried) - outcomes.count("does not run")
        partly = sum(outcome(row) == "right" and _skips(row) for row in tried)
        right, refused, wrong = (outcomes.count(name) for name in ("right", "refused", "wrong"))
        label = f"{kind} (chosen)" if kind in CHOSEN else kind
        yield f"| {label} | {len(tried)} | {run} | {right} | {partly} | {refused} | {wrong} |"
    tries = [tried for _, _, tried in _verdicts(rows)]
    layers = sum(tried.get("layers", 0) for tried in tries)
    yield "\nAn architecture is right if all variants are. The kinds marked as chosen are a selection; of the others,"
    yield f"these are all that this Transformers has. {len(tries):,} adapted models were tried, with {layers:,} adapted"
    yield "layers."


def _skipped(rows: list[Row]) -> Iterator[str]:
    yield "## Skipped layers\n"
    yield "`*` stands for a number."
    found = [
        (_reason(why), f"`{layer}`", row["name"], method)
        for row, method, tried in _verdicts(rows)
        for layer, why in tried.get("skipped", {}).items()
    ]
    yield from _grouped(found)


def _refused(rows: list[Row]) -> Iterator[str]:
    yield "## Refused"
    found = [
        (tried["says"], row["kind"], row["name"], method)
        for row, method, tried in _verdicts(rows)
        if tried["outcome"] == "refused"
    ]
    yield from _grouped(found)


def _wrong(rows: list[Row]) -> Iterator[str]:
    yield "## Wrong"
    found = [
        (
            ": ".join(finding[part] for part in ("what", "detail") if part in finding),
            f"`{finding['layer']}`" if "layer" in finding else row["kind"],
            row["name"],
            method,
        )
        for row, method, tried in _verdicts(rows)
        for finding in tried.get("findings", ())
    ]
    yield from _grouped(found)


def _grouped(found: list[tuple[str, str, str, str]]) -> Iterator[str]:
    """For each reason a list of places, each with its architectures; variants are named if it is not all of them."""
    reasons: dict[tuple[str, tuple[str, ...]], dict[str, dict[str, None]]] = {}
    variants: dict[tuple[str, str, str], dict[str, None]] = {}
    for reason, place, name, method in found:
        variants.setdefault((reason, place, name), {})[method] = None
    for (reason, place, name), methods in variants.items():
        reasons.setdefault((reason, tuple(methods)), {}).setdefault(place, {})[name] = None
    if not reasons:
        yield "\nNone."
    for (reason, methods), places in reasons.items():
        which = "" if len(methods) == len(_METHODS) else f" ({', '.join(_METHODS[name] for name in methods)})"
        yield f"\n{reason}{which}:\n"
        yield from (f"- {place}: {', '.join(names)}" for place, names in places.items())


def _unused(rows: list[Row]) -> Iterator[str]:
    yield "## Layers that the check does not reach\n"
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.get("unused"):
            found.setdefault(", ".join(f"`{layer}`" for layer in row["unused"]), {})[row["name"]] = None
    yield from (f"- {', '.join(names)}: {layers}" for layers, names in found.items())


def _not_run(rows: list[Row]) -> Iterator[str]:
    yield "## Does not run\n"
    yield from (f"- {row['name']} ({row['kind']}), {row['fails']}" for row in rows if "fails" in row)


def _right(rows: list[Row]) -> Iterator[str]:
    yield "## Right\n"
    yield "Those with a star have skipped layers."
    for kind in KINDS:
        right = [row for row in rows if row["kind"] == kind and outcome(row) == "right"]
        names = [f"{row['name']}{_STAR}" if _skips(row) else row["name"] for row in right]
        yield f"\n**{kind}**: {', '.join(names) or 'none'}."


def _verdicts(rows: Iterable[Row]) -> Iterator[tuple[Row, str, Row]]:
    for row in rows:
        for method, tried in row.get("methods", {}).items():
            yield row, method, tried


def _skips(row: Row) -> bool:
    return any("skipped" in tried for tried in row["methods"].values())


def _reason(why: str) -> str:
    """Without the numbers of this one layer."""
    return re.sub(r"\d+ x \d+", "it", why)
