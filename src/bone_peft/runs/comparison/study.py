"""``Study``: what is compared with what, on which base and task, from YAML."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from bone_peft.errors import BoneError
from bone_peft.io.yaml_file import read_yaml

from ..training import Recipe
from ..training.settings import unknown_key
from .compared import METHODS, method

_OF_THE_RECIPE = (
    *("base", "data", "eval_data", "fields", "chat", "chat_template", "template", "dtype", "train_on"),
    *("trust_remote_code", "allow_unused"),
)
_MAY_GROW = ("methods", "seeds", "widen", "judge", "out")
JUDGES = ("loss", "exact_match", "final_answer")


@dataclass(frozen=True)
class Study:
    """Methods x learning rates x seeds.

    Attributes:
        recipe: what all runs have in common, as for ``bone train``; its held-out rows are the test.
        methods: by name (``bone_peft.runs.comparison.compared``), the learning rates that are tried first.
        seeds: how many runs the best learning rate of a method gets.
        widen: how many learning rates beyond those may be tried, in steps of two, while the best is the least or the
            greatest.
        judge: what the best is by: ``"loss"``, ``"exact_match"`` or ``"final_answer"``.
        r: Bone's block size. The other methods get the rank with as many parameters, as nearly as may be.
        targets: the modules that are adapted.
        answers: so many test rows are answered; all of them have their part in the loss.
        answer_after: the marker before the final answer of a worked one.
        answer_batch: rows that are answered at once.
        timed_steps: steps of each method by itself that tell its time and memory.
        out: the study's folder.
    """

    recipe: Recipe
    methods: dict[str, list[float]]
    seeds: int = 3
    widen: int = 3
    judge: str = "loss"
    r: int = 64
    targets: list[str] | str = "all-linear"
    answers: int = 300
    answer_after: str | None = None
    answer_batch: int = 64
    timed_steps: int = 32
    out: str = "studies/study"

    @classmethod
    def load(cls, name: str | Path, values: Mapping[str, Any] | None = None) -> Study:
        """Read a YAML file, or the shipped study of that name, with ``values`` laid over it.

        Raises:
            BoneError: there is none, or something in it is not as it has to be.
        """
        path = Path(name)
        if not path.is_file():
            if str(name) not in names():
                raise BoneError(f"There is no study {str(name)!r}; give a YAML file or one of {', '.join(names())}.")
            path = _folder() / f"{name}.yaml"
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise BoneError(f"{path} holds no study; write it as `key: value` lines, such as `base: ...`.")
        return cls.of({**content, **(values or {})}, str(path))

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str = "the study") -> Study:
        """From plain values, as in YAML."""
        content = dict(content)
        shared = {key: content.pop(key) for key in (*_OF_THE_RECIPE, "training") if key in content}
        own = [field.name for field in dataclasses.fields(cls) if field.name != "recipe"]
        for key in content:
            if key not in (*own, "learning_rates"):
                raise unknown_key(str(key), [*own, "learning_rates", *_OF_THE_RECIPE, "training"], where)
        recipe = Recipe().with_values(shared, where=where)
        if recipe.eval_data is None:
            raise BoneError(f"{where} has no eval_data: the rows that the methods are judged by.")
        rates = content.pop("learning_rates", None)
        content["methods"] = _rates(content.get("methods"), rates, where)
        study = cls(recipe=recipe, **content)
        study._check(where)
        return study

    def to_dict(self) -> dict[str, Any]:
        """Plain values; :meth:`of` reads them back."""
        whole = self.recipe.to_dict()
        shared = {key: whole[key] for key in (*_OF_THE_RECIPE, "training") if key in whole}
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "recipe"}
        return shared | {key: value for key, value in own.items() if value is not None}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

    def differs_from(self, other: Study) -> list[str]:
        """Keys that make runs of the two studies not comparable."""
        mine, others = self.to_dict(), other.to_dict()
        keys = {*mine, *others} - {*_MAY_GROW}
        return sorted(key for key in keys if mine.get(key) != others.get(key))

    def _check(self, where: str) -> None:
        least = {"seeds": 1, "widen": 0, "r": 1, "answers": 1, "answer_batch": 1, "timed_steps": 8}
        for key, low in least.items():
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise BoneError(f"{key} in {where} must be a whole number, {low} or more; found {value!r}.")
        if self.judge not in JUDGES:
            raise BoneError(f"judge in {where} must be {', '.join(JUDGES)}; found {self.judge!r}.")
        if self.judge == "final_answer" and self.answer_after is None:
            raise BoneError(f"judge: final_answer in {where} needs answer_after, the marker before a final answer.")
        for key, kind in (("out", str), ("answer_after", str | None)):
            if not isinstance(getattr(self, key), kind) or getattr(self, key) == "":
                raise BoneError(f"{key} in {where} must be text, found {getattr(self, key)!r}.")
        if not (isinstance(self.targets, str) or _are_texts(self.targets)):
            raise BoneError(f"targets in {where} must be all-linear or a list of names, found {self.targets!r}.")
        for key in ("learning_rate", "seed", "output_dir"):
            if key in self.recipe.training:
                raise BoneError(f"training.{key} in {where} is what a study varies, or has itself: leave it out.")


def names() -> list[str]:
    """Names of the shipped studies."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def _folder() -> Path:
    return Path(str(resources.files("bone_peft.runs.comparison") / "studies"))


def _rates(methods: Any, rates: Any, where: str) -> dict[str, list[float]]:
    if methods is None:
        raise BoneError(f"{where} names no methods; choose from {', '.join(METHODS)}.")
    if isinstance(methods, list):
        methods = dict.fromkeys(methods, rates)
    if not isinstance(methods, dict) or not methods:
        raise BoneError(f"methods in {where} must be a list of names, or `name: [learning rates]`; found {methods!r}.")
    found = {}
    for name, own in methods.items():
        method(name)
        values = own if own is not None else rates
        if not isinstance(values, list) or not values or not all(map(_is_rate, values)):
            raise BoneError(f"{name} in {where} needs learning rates, such as [0.0005, 0.001]; found {values!r}.")
        found[name] = sorted({float(value) for value in values})
    return found


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _are_texts(values: Any) -> bool:
    return isinstance(values, Iterable) and all(isinstance(value, str) for value in values)
