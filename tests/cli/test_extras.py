"""What needs an extra says which, and what needs none runs without any."""

import subprocess
import sys

import pytest
from peft import get_peft_model

from ..models import config_for, llama, randomize

PACKAGES = ("trl", "datasets", "matplotlib", "tensorboard", "gguf", "reasoning_gym", "bitsandbytes", "rwkv", "fla")


def without_extras(code):
    start = (
        "from importlib.machinery import PathFinder\n"
        "real = PathFinder.find_spec\n"
        f"hidden = {PACKAGES}\n"
        "PathFinder.find_spec = lambda name, *rest, **more: None if name in hidden else real(name, *rest, **more)\n"
    )
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)


RUN = """
from typer.testing import CliRunner
from bone_peft.cli.main import app
for line in {lines}:
    result = CliRunner().invoke(app, line)
    print(line[0], result.exit_code, " ".join(result.output.split())[-300:], result.exception)
"""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    model = get_peft_model(llama(), config_for("bone", target_modules=["q_proj"]))
    randomize(model)
    model.save_pretrained(folder := tmp_path_factory.mktemp("adapter"))
    return str(folder)


def test_the_small_commands_need_no_extra(chat_base, adapter, tmp_path):
    base = str(chat_base)
    lines = [
        ["inspect", adapter],
        ["convert", adapter, "--to", "miss", "--out", str(tmp_path / "miss")],
        ["estimate", base],
        ["generate", "Hello", "--base", base, "--max-new-tokens", "2"],
        ["merge", "--base", base, "--adapter", adapter, "--out", str(tmp_path / "merged")],
    ]
    done = without_extras(RUN.format(lines=lines))
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [[line[0], "0"] for line in lines], done.stdout


def test_the_others_say_what_to_type(chat_base, rows_file, tmp_path):
    lines = [
        ["train", "--base", str(chat_base), "--data", str(rows_file), "--out", str(tmp_path / "run")],
        ["eval", "--base", str(chat_base), "--data", str(rows_file)],
        ["estimate", str(chat_base), "--chart", str(tmp_path / "chart.svg")],
    ]
    done = without_extras(RUN.format(lines=lines)).stdout.splitlines()
    for line, said in zip(lines, done, strict=True):
        assert said.startswith(f"{line[0]} 2"), said
        assert "is not installed: pip install 'bone-peft[train]'" in said, said
    assert not (tmp_path / "run").exists()


def test_python_says_so_too():
    done = without_extras("import bone_peft; bone_peft.load_base('x.pth')")
    assert "bone_peft.errors.BoneError" in done.stderr
