"""Every block of code of the README and of the documentation runs as it stands, or says why it does not.

A page is followed from its top, in a folder that has the files which the page speaks of; the models are tiny. Only the
number of steps that a run takes is ours.
"""

import builtins
import os
import re
import shlex
from functools import wraps
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import huggingface_hub
import pytest
import yaml
from typer.testing import CliRunner

from bone_peft.cli.main import app

from .blocks import Block, blocks_of
from .stand_ins import lay_files, lay_hub

pytest.importorskip("trl", reason="the train extra is not installed")
ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
)
ELSEWHERE = {"docs/architectures.md": "checks/architectures writes it"}
NEEDS = {"gym:": "reasoning_gym", "quantize": "bitsandbytes", ".pth": "rwkv7_hf", "rwkv.model": "rwkv"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    cache = tmp_path_factory.mktemp("hub")
    lay_hub(cache)
    return cache


@pytest.fixture
def reader(hub, tmp_path, monkeypatch):
    """Somebody with an empty folder, a full cache and little time."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.chdir(tmp_path)
    module = import_module("bone_peft.runs.training.train")
    made = module.arguments_of

    @wraps(made)
    def two_steps(*args, **kwargs):
        arguments = made(*args, **kwargs)
        arguments.max_steps = 2
        return arguments

    monkeypatch.setattr(module, "arguments_of", two_steps)
    monkeypatch.setattr("bone_peft.runs.training.finish._TOKENS", 8)
    with patch.dict(os.environ):  # what a page sets is its own
        yield


def run_shell(text: str, where: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "bone", f"{where}: only bone is run here; mark what is not: {line}"
            done = CliRunner().invoke(app, words[1:], input="")
            assert done.exit_code == 0, f"{where}: {line}\n{done.output}"


def run_python(text: str, page: str, line: int, names: dict) -> None:
    exec(compile("\n" * (line - 1) + text, page, "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_the_blocks_of_a_page(page, reader):
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = blocks_of(ROOT / page)
    names = {"__name__": "__main__", "__builtins__": builtins}
    running = [block for block in blocks if block.marker != "not run"]
    for word, package in NEEDS.items():
        if any(word in block.text for block in running):
            pytest.importorskip(package)
    if any(block.kind in ("python", "shell") for block in running):
        lay_files("\n".join(block.text for block in running))
    for block in running:
        where = f"{page}:{block.line}"
        if block.marker == "file":
            Path(block.says).write_text(block.text, encoding="utf-8")
        elif block.kind == "shell":
            run_shell(block.text, where)
        elif block.kind == "python":
            run_python(block.text, page, block.line, names)
        else:
            assert block.kind == "yaml", f"{where}: say what this is, in a marker"
            assert yaml.safe_load(block.text), where
    assert re.findall(r"^ *<!-- (not run|file): ", text, re.MULTILINE) == [b.marker for b in blocks if b.marker]


def test_blocks_are_found_as_a_reader_sees_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\n```\n\n"
        "<!-- not run: a GPU -->\n\n    bone bench train\n\n"
        "1. In a list:\n\n       bone demo\n\n"
        "<!-- file: a.yaml -->\n\n```yaml\nr: 8\n```\n\n"
        "Text.\n\n```\nbone demo\n```\n\n```math\nx\n```\n"
    )
    assert blocks_of(page) == [
        Block(2, "python", "x = 1\n"),
        Block(7, "shell", "bone bench train\n", "not run", "a GPU"),
        Block(11, "shell", "bone demo\n"),
        Block(16, "yaml", "r: 8\n", "file", "a.yaml"),
        Block(22, "shell", "bone demo\n"),
    ]


def test_pages_that_are_left_out_are_there():
    assert set(ELSEWHERE) < set(PAGES)
