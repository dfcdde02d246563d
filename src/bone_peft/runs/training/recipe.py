"""``Recipe``: everything that defines a run, to and from YAML."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bone_peft.errors import BoneError
from bone_peft.io.names import shown
from bone_peft.io.whole import whole_file
from bone_peft.io.yaml_file import parse_yaml, read_yaml

from .. import recipes
from . import settings
from .held_out_loss import settings_of
from .logs import check_names
from .methods import training_method

_TRAIN_ON = ("all", "last")
_KEEP = ("last", "best")
_MOST_OFTEN = 1000


@dataclass
class Recipe:
    """One run.

    Attributes:
        method: what is learned of the rows: ``"sft"``, their answers, or ``"dpo"``, to prefer one of two answers.
        base: base model, as for :func:`bone_peft.files.bases.load_base`.
        data: training rows, as for :func:`bone_peft.runs.data.load_data`; a list is read one after the other, and a
            table of sources has beside each how often its rows are taken.
        fields: names of the prompt and the completion column.
        chat: True for chat messages, False for plain text, None to follow the base's tokenizer.
        chat_template: of a base that has none, or in its place: ``"chatml"``, ``"llama3"``, or a file. It is saved with
            the adapter, and everything that loads the adapter speaks as it says.
        template: plain text around the prompt, with ``{prompt}`` where it goes, and with ``{completion}`` the answer.
        eval_data: held-out rows; they are taken out of the training rows. The loss on them (on 200 at most) is told at
            the start, at every tenth of the steps and at the end, if ``training`` does not say otherwise.
        eval_split: a fiftieth of the training rows (10 to 200) is held out instead.
        keep: the adapter that a run leaves, the ``"last"`` or the ``"best"`` by the loss on held-out rows.
        early_stopping: so many looks at that loss without a better one end the run; the best is kept.
        out: the run's folder.
        dtype: of the frozen base; the adapter's parameters are always fp32.
        seed: of the adapter's initial values, the order of the rows and dropout.
        quantize: ``"none"``, ``"8bit"`` or ``"4bit"``.
        train_on: ``"all"`` answers of a chat are learned, or the ``"last"`` of each.
        context_chunk: rows are learned in pieces of so many tokens; RWKV's state is carried on, gradients are not. Rows
            are whole then, if ``training.max_length`` does not say otherwise.
        log: where the losses go besides TensorBoard, by Transformers' names: wandb, mlflow, trackio, ...
        push_to_hub: ``OWNER/NAME`` on the Hugging Face Hub that the adapter goes to in the end.
        tensor_parallel: of several processes, each has a part of every layer, and all of them the same rows.
        trust_remote_code: run the Python code that the base brings along.
        allow_unused: train on although some adapter tensors get no gradient.
        continue_from: an adapter to train on, as for :func:`bone_peft.files.bases.load_adapter`, in place of a new one.
        adapter: arguments of :class:`bone_peft.BoneConfig`.
        training: arguments of :class:`trl.SFTConfig`, or of that of the method.
    """

    base: str = ""
    method: str = "sft"
    data: str | list[str] | dict[str, float] = ""
    fields: list[str] | None = None
    chat: bool | None = None
    chat_template: str | None = None
    template: str | None = None
    eval_data: str | list[str] | None = None
    eval_split: bool = False
    keep: str = "last"
    early_stopping: int | None = None
    out: str = "runs/bone"
    dtype: str = "bfloat16"
    seed: int = 0
    quantize: str = "none"
    train_on: str = "all"
    context_chunk: int | None = None
    log: list[str] = field(default_factory=list)
    push_to_hub: str | None = None
    tensor_parallel: bool = False
    continue_from: str | None = None
    trust_remote_code: bool = False
    allow_unused: bool = False
    adapter: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str | Path) -> "Recipe":
        """Read a YAML file, or the shipped recipe of that name.

        Raises:
            BoneError: there is none, it is not YAML, or it has a key that no recipe has.
        """
        path = Path(name)
        if not path.is_file():
            if str(name) not in recipes.names():
                raise BoneError(
                    f"There is no recipe {str(name)!r}; give a YAML file or one of {', '.join(recipes.names())}."
                )
            path = recipes.path_of(str(name))
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise BoneError(f"{path} holds no recipe; write it as `key: value` lines, such as `base: ...`.")
        content.pop("versions", None)  # written by a run for the record
        return cls().merged(content, where=str(path))

    def merged(self, content: Mapping[str, Any], *, where: str = "the recipe") -> "Recipe":
        """Return a copy with ``content`` (as in YAML) laid over it; ``adapter`` and ``training`` key by key."""
        return self.with_values({str(key): value for key, value in content.items()}, where=where)

    def with_values(self, values: Mapping[str, Any], *, where: str = "the recipe") -> "Recipe":
        """Return a copy with these keys set; dotted ones (``"adapter.r"``) are within a section.

        Raises:
            BoneError: a key is unknown (the nearest one is named), or a value is of another type.
        """
        copy = dataclasses.replace(self, adapter=dict(self.adapter), training=dict(self.training))
        for key, value in values.items():
            section, _, inner = key.partition(".")
            if section in ("adapter", "training"):
                if not inner and not isinstance(value, Mapping):
                    raise BoneError(f"{key} in {where} must hold `key: value` lines, found {value!r}.")
                more = {inner: value} if inner else {str(name): one for name, one in value.items()}
                getattr(copy, section).update(more)
            elif key in (own := [f.name for f in dataclasses.fields(copy)]) and not inner:
                setattr(copy, key, value)
            else:
                raise settings.unknown_key(key, own, where)
        copy._check_types(where)
        copy._check_learning(where)
        return copy

    def checked(self) -> "Recipe":
        """Return a copy with the defaults filled in, ready to run; every key and value of both sections is checked."""
        for name in ("base", "data", "out"):
            if not getattr(self, name):
                raise BoneError(f"The recipe names no {name}; add `{name}: ...` or pass --{name}.")
        if self.continue_from is not None and self.adapter:
            raise BoneError(
                f"{self.continue_from} brings the options of its adapter along: leave out "
                f"{', '.join(f'adapter.{key}' for key in self.adapter)}."
            )
        adapter = self.adapter if self.continue_from is not None else settings.usual_adapter(self.adapter)
        variant = settings.checked_variant(adapter)
        check_names(self.log)
        whole_rows = {} if self.context_chunk is None else {"max_length": None}
        held_out = self.eval_data is not None or self.eval_split
        told = settings_of(self.training, held_out, self.keeps_best)
        training_method(self.method).check(self)
        training = settings.checked_training(whole_rows | told | self.training, self.method, variant)
        settings.check_held_out(training, held_out)
        return dataclasses.replace(self, adapter=adapter, training=training)

    @property
    def keeps_best(self) -> bool:
        """Whether the run leaves the adapter that did best on held-out rows."""
        return self.keep == "best" or self.early_stopping is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the keys that say nothing."""
        return {
            key: value for key, value in dataclasses.asdict(self).items() if value is not None and value not in ({}, [])
        }

    def to_yaml(self) -> str:
        """The recipe as YAML that :meth:`load` reads back to an equal recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

    def save(self, path: str | Path) -> None:
        """Write the recipe with the versions it ran on."""
        versions = yaml.safe_dump({"versions": versions_now()}, sort_keys=False)
        with whole_file(path) as staging:
            staging.write_text(self.to_yaml() + versions, encoding="utf-8")

    def _check_types(self, where: str) -> None:
        if self.fields is not None:
            names = self.fields
            if not isinstance(names, list | tuple) or len(names) != 2 or not all(isinstance(n, str) for n in names):
                raise BoneError(f"fields in {where} must name two columns, [prompt, completion]; found {names!r}.")
            self.fields = list(names)
        for name in ("data", "eval_data"):
            value = getattr(self, name)
            if isinstance(value, list) and value and all(isinstance(source, str) and source for source in value):
                continue
            if name == "data" and isinstance(value, dict) and value:
                _check_weights(value, where)
                continue
            if not isinstance(value, str) and not (value is None and name == "eval_data"):
                raise BoneError(f"{name} in {where} must be a source or a list of sources, found {value!r}.")
        optional = ("template", "continue_from", "push_to_hub", "chat_template")
        for name in ("base", "method", "out", "dtype", "quantize", *optional):
            value = getattr(self, name)
            if not (isinstance(value, str) and "\0" not in value) and not (value is None and name in optional):
                raise BoneError(f"{name} in {where} must be text, found {value!r}.")
        training_method(self.method)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**32:
            raise BoneError(f"seed in {where} must be a whole number from 0 to {2**32 - 1}, found {self.seed!r}.")
        for name in ("trust_remote_code", "allow_unused", "tensor_parallel", "eval_split"):
            if not isinstance(getattr(self, name), bool):
                raise BoneError(f"{name} in {where} must be true or false, found {getattr(self, name)!r}.")
        if not (self.chat is None or isinstance(self.chat, bool)):
            raise BoneError(f"chat in {where} must be true or false, found {self.chat!r}.")

    def _check_learning(self, where: str) -> None:
        if self.train_on not in _TRAIN_ON:
            raise BoneError(f"train_on in {where} must be {' or '.join(_TRAIN_ON)}, found {self.train_on!r}.")
        if self.keep not in _KEEP:
            raise BoneError(f"keep in {where} must be {' or '.join(_KEEP)}, found {self.keep!r}.")
        for name in ("context_chunk", "early_stopping"):
            number = getattr(self, name)
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise BoneError(f"{name} in {where} must be a whole number, 1 or more, found {number!r}.")
        if not isinstance(self.log, list) or not all(isinstance(name, str) for name in self.log):
            raise BoneError(f"log in {where} must be a list of names, such as [wandb], found {self.log!r}.")
        if self.eval_split and self.eval_data is not None:
            raise BoneError(f"{where} has eval_data and eval_split: held-out rows come from one of them.")


def _check_weights(weights: dict[Any, Any], where: str) -> None:
    for source, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight <= _MOST_OFTEN
        if not (isinstance(source, str) and source and number):
            raise BoneError(
                f"data in {where} must have a source and how often its rows are taken, such as `rows.jsonl: 0.5`; "
                f"found {source!r}: {weight!r}."
            )


def parse_value(text: str) -> Any:
    """A value from the command line, read as in a recipe (``1e-4`` is a number, ``[a, b]`` a list)."""
    try:
        return parse_yaml(text, repr(text))
    except BoneError as error:
        raise BoneError(f"{shown(text)} is not a value; quote it, or write it as in YAML.") from error


def versions_now() -> dict[str, str]:
    """Versions of what decides the numbers of a run."""
    from importlib.metadata import version

    return {
        name: version(name) for name in ("bone-peft", "torch", "transformers", "peft", "trl", "accelerate", "datasets")
    }
