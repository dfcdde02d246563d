"""The commands that are ended before their end, what a user would run next, and what has to be true then."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
_LOADED = ("trl", "datasets", "matplotlib.backends.backend_agg", "jinja2", "torch.utils.tensorboard", "yaml", "peft")
_OURS = (
    "cli.main",
    "runs.training.trainer",
    "runs.training.report",
    "runs.evaluation",
    "files.merging",
    "files.conversion",
)
_MODELS = ("transformers.models.llama.modeling_llama", "transformers.integrations", "accelerate")

_TRAIN = ["train", "--base", "base", "--data", "rows.jsonl", "--fields", "query", "response", "--no-bf16", "--r", "8"]
_TRAIN += ["--target-modules", "all-linear", "--batch-size", "2", "--steps", "4", "--dropout", "0.1", "--out", "out"]
_TRAIN += ["--set", "training.save_steps=1", "--set", "training.save_total_limit=2"]
_MERGE = ["merge", "--base", "base", "--adapter", "adapter", "--out", "out"]
_CONVERT = ["convert", "adapter", "--to", "lora", "--base", "base", "--out", "out"]
_FILE = ["convert", "rwkv.pth", "--to", "rwkv", "--out", "out.pth"]
_RESUME = ["train", "--resume", "--out", "out"]

_PASSING = re.compile(
    rb"(?<=/)[^\s\"']*/(templates/[^/\n]+|scratch/work)(?=/)"
    rb"|\n\| (Peak memory|Tokens per second|Training time) .*"
)
"""Adapters say where their base and their rows were, and what this part of the run took."""

Files = dict[str, bytes]
Run = Callable[[list[str], Path], Any]


@dataclass(frozen=True)
class Command:
    """A command that makes a result in one piece.

    Attributes:
        arguments: of ``bone``, in a folder that is a copy of the template ``before``.
        before: the template.
        whole: the template that holds what it makes.
        old: whether ``before`` holds an old result.
        out: the place of the result.
    """

    arguments: list[str]
    before: str
    whole: str
    old: bool = False
    out: str = "out"

    def next_arguments(self, work: Path, templates: Templates) -> list[list[str]]:
        """What a user would run next, to have the result."""
        force = (work / self.out).exists() and "--force" not in self.arguments
        return [[*self.arguments, "--force"] if force else self.arguments]

    def after_end(self, work: Path, templates: Templates) -> list[str]:
        """Faults in what the end left: the old result, or the new one, whole."""
        found = files(work / self.out)
        if self.old and (found == files(templates[self.before] / self.out) or _aside(work, self.out)):
            return []
        return self.after_next(work, templates) if found or self.old else []

    def after_next(self, work: Path, templates: Templates) -> list[str]:
        """Faults in the result after the next run."""
        return differences(files(work / self.out), files(templates[self.whole] / self.out))


@dataclass(frozen=True)
class Training(Command):
    """A run: checkpoints come before the result, and the next command continues from them."""

    def next_arguments(self, work: Path, templates: Templates) -> list[list[str]]:
        recipe = files(work / self.out).get("recipe.yaml")
        if self.old and recipe != files(templates[self.whole] / self.out)["recipe.yaml"]:
            return [_RESUME, self.arguments]
        return [_RESUME] if recipe is not None else [self.arguments]

    def after_end(self, work: Path, templates: Templates) -> list[str]:
        found, new = files(work / self.out), files(templates[self.whole] / self.out)
        if self.old and (found == files(templates[self.before] / self.out) or _aside(work, self.out)):
            return []
        faults = differences(_adapter(found), _adapter(new)) if _adapter(found) else []
        if self.old and found.get("recipe.yaml") != new["recipe.yaml"]:
            faults.append("the old run is not whole, and the new one is not there")
        if self.old and not _adapter(found) and not any(path.endswith("trainer_state.json") for path in found):
            faults.append("the old run went before there was a checkpoint of the new one")
        return faults

    def after_next(self, work: Path, templates: Templates) -> list[str]:
        found, new = files(work / self.out), files(templates[self.whole] / self.out)
        faults = differences(_adapter(found), _adapter(new))
        if _losses(found) != _losses(new):
            faults.append("the losses are not those of a run that nobody ended")
        return faults


COMMANDS: dict[str, Command] = {
    "train": Training(_TRAIN, "inputs", "trained"),
    "train --force": Training([*_TRAIN, "--force"], "trained before", "trained", old=True),
    "train --resume": Training(_RESUME, "half trained", "trained"),
    "merge": Command(_MERGE, "inputs", "merged"),
    "merge --force": Command([*_MERGE, "--force"], "merged before", "merged", old=True),
    "convert": Command(_CONVERT, "inputs", "converted"),
    "convert --force": Command([*_CONVERT, "--force"], "converted before", "converted", old=True),
    "convert to a file": Command(_FILE, "inputs", "a file", out="out.pth"),
    "convert to a file --force": Command([*_FILE, "--force"], "a file before", "a file", old=True, out="out.pth"),
}


def warm() -> None:
    """Load what the commands load, so that a fork begins with its work. Nothing here may start a thread."""
    os.environ |= dict.fromkeys(("ACCELERATE_USE_CPU", "HF_HUB_OFFLINE"), "1")
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    import torch

    torch.set_num_threads(1)
    for name in (*_LOADED, *_MODELS, *(f"bone_peft.{name}" for name in _OURS)):
        importlib.import_module(name)
    from trl import SFTTrainer  # noqa: F401  (trl loads it when it is asked for)


class Templates:
    """Folders with inputs and a user's own files, before and after each command. They are made when asked for."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder = folder
        self.run = run
        self.ended: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Path:
        place = self.folder / name
        if not place.exists():
            if name == "inputs":
                _write_inputs(place)
            elif name == "half trained":
                _half(self["trained"], place)
            else:
                self._make(name, place)
        return place

    def seconds_and_changes(self, command: Command) -> tuple[float, int]:
        """How long a command takes when nobody stops it, and how often it changes the file system."""
        name = " ".join(command.arguments)
        if name not in self.ended:
            self._make(name, self.folder / name, command.before, command.arguments)
        return self.ended[name].seconds, self.ended[name].changes

    def _make(self, name: str, place: Path, before: str = "inputs", arguments: list[str] | None = None) -> None:
        arguments = arguments or _MADE_BY[name]
        shutil.copytree(self[before], place)
        self.ended[name] = self.run(arguments, place)
        if self.ended[name].code != 0:
            raise RuntimeError(f"bone {' '.join(arguments)} ends with {self.ended[name].code}: {self.ended[name].said}")


_MADE_BY = {
    "trained before": [*_TRAIN, "--seed", "1"],
    "trained": _TRAIN,
    "merged before": [*_MERGE, "--weight", "0.5"],
    "merged": _MERGE,
    "converted before": [*_CONVERT, "--dtype", "bfloat16"],
    "converted": _CONVERT,
    "a file before": [*_FILE, "--dtype", "bfloat16"],
    "a file": _FILE,
}


def _write_inputs(place: Path) -> None:
    import torch
    from peft import get_peft_model
    from tests.runs.tiny import make_base, sums, write_rows
    from transformers import AutoModelForCausalLM

    from bone_peft import BoneConfig

    make_base(place / "base", chat=False)
    write_rows(place / "rows.jsonl", sums(16))
    (place / "out.d").mkdir()
    for notes in (place / "notes.txt", place / "out.d" / "notes.txt"):
        notes.write_text("mine")
    shutil.copy(_FIXTURES / "rwkv-peft" / "bone" / "adapter.pth", place / "rwkv.pth")
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    adapted = get_peft_model(base, BoneConfig(r=8, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "bone_block" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(str(place / "adapter"))


def _half(trained: Path, place: Path) -> None:
    """The run as a kill in its last step leaves it."""
    shutil.copytree(trained, place)
    for name in ("adapter", "checkpoints/checkpoint-4"):
        shutil.rmtree(place / "out" / name)
    for name in ("result.json", "report.html", "loss.png"):
        (place / "out" / name).unlink()


def files(place: Path) -> Files:
    """The contents of a file, or of all files in a folder, by path."""
    if place.is_file():
        return {"": place.read_bytes()}
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def differences(found: Files, wanted: Files) -> list[str]:
    """What two folders differ in, but for what differs each time."""
    one, other = ({path: _PASSING.sub(b"", content) for path, content in each.items()} for each in (found, wanted))
    paths = sorted(path for path in {*one, *other} if one.get(path) != other.get(path))
    return [f"{', '.join(paths)}: not as in the result of a command that nobody ended"] if paths else []


def inputs_changed(work: Path, templates: Templates) -> list[str]:
    """Inputs and files of the user that are not as they were."""
    wanted, found = files(templates["inputs"]), files(work)
    return [f"{path} of the user was touched" for path in wanted if found.get(path) != wanted[path]]


def litter(work: Path) -> list[str]:
    """Hidden files and folders that are no manifest."""
    return [path.relative_to(work).as_posix() for path in work.rglob(".*") if path.name != ".bone.json"]


def sizes(templates: Templates, command: Command) -> tuple[int, int]:
    """Bytes of the largest file of a result, and of all."""
    found = [len(content) for content in files(templates[command.whole] / command.out).values()]
    return max(found), sum(found)


def _aside(work: Path, out: str) -> bool:
    """Whether a kill came between two plain renames: the old result has a name that the next run knows."""
    return not (work / out).exists() and bool(list(work.glob(f".{out}.*.old")))


def _adapter(found: Files) -> Files:
    return {path: content for path, content in found.items() if path.startswith("adapter/")}


def _losses(found: Files) -> Any:
    return [(entry["step"], entry["loss"]) for entry in json.loads(found["result.json"])["history"] if "loss" in entry]
