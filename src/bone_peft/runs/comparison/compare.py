"""``compare``: a study from its file to its table, read top to bottom."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bone_peft.costs.measure import device_name
from bone_peft.errors import BoneError, explains_missing_extras
from bone_peft.io.json_text import json_text
from bone_peft.io.locks import BusyError, locked
from bone_peft.io.names import brief
from bone_peft.io.ours import FileOf
from bone_peft.io.place import expanded
from bone_peft.io.whole import parents_of, whole_file

from ..training.recipe import versions_now
from .charts import draw
from .compared import method
from .equal_size import nearest_size, parameters
from .one_run import recipe_of
from .search import Trial, wanted
from .study import Study
from .summary import Line, summary
from .workers import Workers, bytes_needed

_HEAD = "# Written by bone compare: the study that the runs beside this file are of."
_UNEQUAL = 0.1
"""Of the count: no rank fits better in a small model, and a method may not reach all that Bone adapts."""
_STUDY = FileOf(re.compile(re.escape(_HEAD.encode())))


@explains_missing_extras
def compare(study: Study, *, jobs: int | None = None, say: Callable[[str], None] = print) -> list[Line]:
    """Run what is missing of ``study``, and write its table and charts. Runs that are done are kept.

    Args:
        study: its folder, ``study.out``, has ``runs/*.json``, one for each run, ``summary.json`` and charts.
        jobs: runs at once; None goes by the memory of the GPU.
        say: takes a sentence on each run.

    Returns:
        The methods, the best first.

    Raises:
        BoneError: something about the study, its base or data, or another study is in its folder.
    """
    for name, rates in study.methods.items():
        recipe_of(study, Trial(name, rates[0], 0)).checked()
    folder = expanded(study.out)
    with ExitStack() as held:
        held.enter_context(parents_of(folder / "study.yaml"))
        try:
            held.enter_context(locked(folder))
        except BusyError:
            raise BoneError(f"Another process writes to {study.out}; wait for it, or choose another --out.") from None
        _begin(study, folder)
        held.enter_context(_said_how_to_go_on())
        runs = folder / "runs"
        sizes, count = _sizes(study, say)
        workers = held.enter_context(Workers(study, sizes, jobs))
        timed: dict[str, dict[str, Any]] = {}
        for name in study.methods:
            path, size = runs / f"{name}-steps.json", sizes.get(name)
            here = {"size": size, "device": device_name()}
            timed[name] = _kept(path, here) or workers.run("time", Trial(name, study.methods[name][0], 0))
            _keep(path, {**timed[name], "size": size})
            say(f"{name}: {_of_steps(timed[name], size)}")
            share = timed[name].get("parameters", count) / count
            if size is not None and abs(share - 1) > _UNEQUAL:
                say(f"{name} trains {share:.2f} times as many numbers as Bone: they do not compare at equal counts.")
        results = _results(study, runs)

        def done(trial: Trial, result: dict[str, Any]) -> None:
            results[trial] = result
            _keep(runs / f"{trial.name}.json", {**result, **asdict(trial), "size": sizes.get(trial.method)})
            say(f"{trial.method}, lr {trial.rate:g}, seed {trial.seed}: {_of_run(result)}")

        needs = {name: bytes_needed(found["run_bytes"]) for name, found in timed.items() if "run_bytes" in found}
        workers.run_all(lambda: wanted(study, results), needs, done)
        lost = sum(bool(result.get("unfinished")) for result in (*results.values(), *timed.values()))
        if lost:
            say(f"The table is without runs that did not come to their end ({lost}); start it again to try them again.")
        lines = summary(study, results, timed, sizes)
        with whole_file(folder / "summary.json") as file:
            file.write_text(json_text([asdict(line) for line in lines]), encoding="utf-8")
        draw(study, results, lines, folder)
        return lines


@contextmanager
def _said_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        said = KeyboardInterrupt("Stopped; the runs that are done are kept, so start it again to go on.")
        vars(said).update(vars(stop))
        raise said from None


def _begin(study: Study, folder: Path) -> None:
    """Refuse a folder in which runs of another study are."""
    path = folder / "study.yaml"
    if path.is_file():
        changed = Study.load(path).differs_from(study)
        if changed:
            raise BoneError(
                f"{study.out} holds a study that differs in {', '.join(changed)}, so its runs do not compare with "
                "these: choose another --out."
            )
    elif any(folder.iterdir() if folder.is_dir() else ()):
        raise BoneError(f"{study.out} holds something else than a study; choose another folder with --out.")
    with whole_file(path, _STUDY) as file:
        file.write_text(f"{_HEAD}\n{study.to_yaml()}", encoding="utf-8")
    (folder / "runs").mkdir(exist_ok=True)


def _sizes(study: Study, say: Callable[[str], None]) -> tuple[dict[str, int], int]:
    """By method, the rank at which it has about as many parameters as Bone; and how many that are.

    Of methods that have Bone's block size it is that.
    """
    base = _empty(study)
    count = parameters(base, method("bone").config(study.r, study.targets))
    sizes = {}
    for name in study.methods:
        own = method(name)
        if not own.trains_base:
            sizes[name] = _size(base, name, study, count)
    say(f"Bone with r={study.r} has {count:,} parameters; the others get the rank that has about as many.")
    return sizes, count


def _size(base: Any, name: str, study: Study, count: int) -> int:
    own = method(name)
    try:
        return nearest_size(base, own, study.targets, count) if own.sizes else study.r
    except BoneError:
        raise
    except Exception as error:  # PEFT refuses layers in its own ways
        raise BoneError(f"{name} does not adapt this base: {brief(error)}; leave that method out.") from error


def _empty(study: Study) -> Any:
    """The base without its weights, which are not even read."""
    import torch

    from bone_peft.costs.estimation.models import empty

    base = study.recipe.base
    folder = expanded(base)
    where = str(folder.absolute()) if folder.is_dir() else base
    return empty(where, torch.bfloat16, "CAUSAL_LM", study.recipe.trust_remote_code)


def _results(study: Study, runs: Path) -> dict[Trial, Any]:
    """Of the runs that came to their end."""
    found = {}
    for path in sorted(runs.glob("*-seed*.json")):
        result = _kept(path, {})
        if result is not None and result.get("method") in study.methods and result.get("seed", 0) < study.seeds:
            found[Trial(result["method"], float(result["rate"]), int(result["seed"]))] = result
    return found


def _kept(path: Path, like: dict[str, Any]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = isinstance(found, dict) and not found.get("unfinished")
    return found if is_whole and all(found.get(key) == value for key, value in like.items()) else None


def _keep(path: Path, result: dict[str, Any]) -> None:
    with whole_file(path) as file:
        file.write_text(json_text({**result, "versions": versions_now()}), encoding="utf-8")


def _of_steps(found: dict[str, Any], size: int | None) -> str:
    if "failed" in found:
        return str(found["failed"])
    rank = "" if size is None else f"r {size}, "
    return (
        f"{rank}{found['parameters']:,} parameters, {found['step_ms']:,.0f} ms a step, "
        f"{found['peak_bytes'] / 2**30:.1f} GiB"
    )


def _of_run(result: dict[str, Any]) -> str:
    if "failed" in result:
        return str(result["failed"])
    final = "" if result["final_answer"] is None else f", final answers {result['final_answer']:.1%}"
    return f"loss {result['loss']:.4f}, exact match {result['exact_match']:.1%}{final}, {result['seconds']:.0f} s"
