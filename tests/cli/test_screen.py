"""What comes from files or from models is shown, and does nothing to the terminal."""

import io
import json
import shutil

import pytest
from peft import get_peft_model
from rich.table import Table
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bone_peft.cli.console import ScoringProgress, Screen
from bone_peft.io.names import printable
from bone_peft.runs.evaluation import stream_answer

from ..models import config_for
from .test_commands import bone

EVIL = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e[/] [bold red]x[/bold red] [link=http://x]:smile:\udcff"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e[/] [bold red]x[/bold red] [link=http://x]:smile:\udcff"


def harmless(done):
    for text in (done.stdout, done.stderr):
        assert not any(c in text for c in "\x1b\x07\r\x9b\u202e\udcff")
    assert "Traceback" not in done.output
    return done.output


@pytest.fixture
def adapter(plain_base, tmp_path):
    folder = tmp_path / "adapter"
    get_peft_model(AutoModelForCausalLM.from_pretrained(plain_base), config_for("bone")).save_pretrained(folder)
    return folder


def configured(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_printable():
    assert printable(EVIL) == SHOWN
    assert printable("plain, é, 日本語, \n\t 👩‍👩‍👧") == "plain, é, 日本語, \n\t 👩‍👩‍👧"
    assert printable("a\nb", keep="") == r"a\nb"


def test_everything_that_a_screen_prints():
    out = io.StringIO()
    screen = Screen(file=out, width=300, force_terminal=False)
    table = Table(title=EVIL, caption=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    screen.print(EVIL)
    screen.print(table)
    screen.rule(EVIL)
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().count(SHOWN) == 6


@pytest.mark.parametrize("name", [EVIL, "[/]", "[/red]x", "[bold]", "a\nb"])
def test_the_base_that_an_adapter_names(adapter, name):
    shown = harmless(bone("inspect", configured(adapter, base_model_name_or_path=name), "--modules"))
    assert printable(name).replace("\\", "").split("\n")[0][:8] in shown.replace("\\", "")
    harmless(bone("inspect", adapter, "--json"))
    refused = bone("convert", adapter, "--to", "lora", "--out", adapter.parent / "lora")
    assert refused.exit_code == 2
    assert len(harmless(refused).strip().splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": EVIL},
        {"target_modules": [EVIL]},
        {"modules_to_save": [EVIL]},
        {"rank_pattern": {EVIL: 8}},
        {"init_weights": EVIL},
        {"bias": EVIL},
        {"task_type": EVIL},
        {EVIL: EVIL},
    ],
)
def test_options_of_an_adapter(adapter, plain_base, tmp_path, changes):
    configured(adapter, **changes)
    for words in (
        ["inspect", adapter, "--modules"],
        ["merge", "--base", plain_base, "--adapter", adapter, "--out", tmp_path / "out"],
        ["generate", "--base", plain_base, "--adapter", adapter, "--max-new-tokens", 1, "a"],
    ):
        done = bone(*words)
        assert done.exit_code in (0, 2)
        harmless(done)


def test_names_of_tensors_and_of_files(adapter, plain_base, tmp_path):
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name + EVIL.replace("\udcff", ""): t for name, t in tensors.items()}, adapter / "evil.safetensors")
    shutil.move(adapter / "evil.safetensors", adapter / "adapter_model.safetensors")
    for words in (["inspect", adapter], ["merge", "--base", plain_base, "--adapter", adapter, "--out", tmp_path / "o"]):
        done = bone(*words)
        assert done.exit_code == 2
        harmless(done)
    for name in (EVIL.replace("/", ""), "[/]"):
        for words in (["inspect", tmp_path / name], ["estimate", f"./{name}"], ["train", f"{name}.yaml"]):
            done = bone(*words)
            assert done.exit_code == 2
            harmless(done)


@pytest.mark.parametrize("name", ["[/]", "[bold]", "a\x1b[2Jb"])
def test_a_run_in_a_folder_of_an_odd_name(plain_base, rows_file, tmp_path, name):
    base = shutil.copytree(plain_base, tmp_path / name / "base")
    done = bone(
        *("train", "--base", base, "--data", rows_file, "--fields", "query", "response", "--steps", 1, "--r", 8),
        *("--target-modules", "q_proj", "--out", tmp_path / name / "run"),
    )
    assert done.exit_code == 0, done.output
    assert printable(str(base)) in harmless(done)
    merged = bone("merge", "--base", base, "--adapter", tmp_path / name / "run/adapter", "--out", tmp_path / name / "m")
    assert merged.exit_code == 0, merged.output
    harmless(merged)


def test_what_a_model_says(plain_base, capsys):
    """A vocabulary may hold anything."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(plain_base), AutoTokenizer.from_pretrained(plain_base)
    tokenizer.decode = lambda *args, **kwargs: "x" + EVIL.replace("\udcff", "")
    stream_answer(model, tokenizer, "a", max_new_tokens=2)
    said = capsys.readouterr().out
    assert r"\x1b" in said and "\x1b" not in said


def test_colours_that_an_environment_asks_for_are_no_moving_lines(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    screen = Screen(file=out)
    assert screen.is_terminal
    with ScoringProgress(screen) as subject:
        subject("base", 2)(1)
    assert out.getvalue() == ""
