"""Outputs of every command: only what is ours is replaced, inputs never, and a stop leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bone_peft.cli import main as entry
from bone_peft.files.checkpoints.model_folder import FolderCheckpoint

from .test_bad_input import adapter, refused  # noqa: F401  (a fixture)
from .test_commands import bone

ROOT = Path(__file__).parent.parent.parent


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def work(adapter, plain_base, rows_file, fixtures, tmp_path, monkeypatch):  # noqa: F811
    """A folder with a base, an adapter, rows, RWKV files and something of the user's; one works in it."""
    shutil.copytree(plain_base, tmp_path / "models" / "base")
    shutil.copytree(adapter, tmp_path / "models" / "adapter")
    shutil.copy(rows_file, tmp_path / "rows.jsonl")
    for name in ("adapter", "base"):
        shutil.copy(fixtures / "rwkv-peft" / "bone" / f"{name}.pth", tmp_path / f"{name}.pth")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MERGE = ["merge", "--base", "models/base", "--adapter", "models/adapter", "--force", "--out"]
CONVERT = ["convert", "models/adapter", "--to", "lora", "--base", "models/base", "--force", "--out"]
EVAL = ["eval", "--base", "models/base", "--data", "rows.jsonl", "--fields", "query", "response", "--json"]
RWKV_MERGE = ["merge", "--base", "base.pth", "--adapter", "adapter.pth", "--force", "--out"]
RWKV_CONVERT = ["convert", "adapter.pth", "--to", "rwkv", "--force", "--out"]
ESTIMATE = ["estimate", "models/base", "--no-memory", "--chart"]
BENCH = ["bench", "train", "--shape", "models/base", "--json"]


@pytest.mark.parametrize("command", [MERGE, CONVERT])
@pytest.mark.parametrize(
    "out", ["models/base", "models/adapter", "models", "mine", ".", "models/../models/base", "link"]
)
def test_folders_that_are_not_ours_to_replace(work, command, out):
    (work / "link").symlink_to("models")
    before = contents(work)
    refused(bone(*command, out))
    assert contents(work) == before


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (RWKV_MERGE, "base.pth"),
        (RWKV_MERGE, "adapter.pth"),
        (RWKV_CONVERT, "adapter.pth"),
        (RWKV_CONVERT, "notes.pth"),
        (RWKV_CONVERT, "other.pth"),
        (EVAL, "rows.jsonl"),
        (EVAL, "models/base/config.json"),
        (EVAL, "models/base"),
        (EVAL, "mine/notes.txt"),
        (ESTIMATE, "picture.svg"),
        (ESTIMATE, "mine"),
        (BENCH, "models/base/config.json"),
        (["bench", "infer", "--chart"], "picture.svg"),
    ],
)
def test_files_that_are_not_ours_to_replace(work, command, out):
    (work / "notes.pth").write_text("mine")
    (work / "picture.svg").write_text("<svg><!-- Created with Matplotlib, by me --></svg>")
    shutil.copy("base.pth", "other.pth")
    before = contents(work)
    refused(bone(*command, out))
    assert contents(work) == before


@pytest.mark.parametrize("command", [MERGE, CONVERT, RWKV_MERGE, RWKV_CONVERT, EVAL, ESTIMATE])
def test_what_is_ours_is_replaced_also_behind_a_link_in_the_home_folder(work, monkeypatch, command):
    monkeypatch.setenv("HOME", str(work / "mine"))
    name = {"--json": "new.json", "--chart": "new.svg"}.get(command[-1], "new.pth" if "base.pth" in command else "new")
    name = "new.pth" if command == RWKV_CONVERT else name
    (work / "mine" / name).symlink_to(f"../disk/{name}")
    for _ in range(2):
        done = bone(*command, f"~/{name}")
        assert done.exit_code == 0, done.output
    assert (work / "mine" / name).is_symlink() and [path.name for path in (work / "disk").iterdir()] == [name]
    if (work / "disk" / name).is_dir():
        listed = json.loads((work / "disk" / name / ".bone.json").read_text())["files"]
        assert {*listed, ".bone.json"} == {path.name for path in (work / "disk" / name).iterdir()}


@pytest.mark.parametrize("command", [MERGE, CONVERT])
def test_results_of_0_1_are_known_by_their_names(work, command):
    (work / "models" / "base" / "of-the-model.txt").write_text("merging copies it")
    assert bone(*command, "out").exit_code == 0
    (work / "out" / ".bone.json").unlink()
    (work / "out" / "notes.txt").write_text("mine")
    refused(bone(*command, "out"), "notes.txt")
    (work / "out" / "notes.txt").unlink()
    assert bone(*command, "out").exit_code == 0
    assert (work / "out" / ".bone.json").exists()


def test_a_merge_into_the_folder_of_its_run(work):
    """As the demo does it, and ``--help`` says."""
    done = bone("merge", "--base", "models/base", "--adapter", "models/adapter", "--out", "models/merged")
    assert done.exit_code == 0, done.output
    assert bone(*MERGE, "models/merged").exit_code == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_signal_leaves_nothing_and_says_so(work, monkeypatch, capsys, name, force):
    number = signal.Signals[name]
    assert bone(*MERGE, "out").exit_code == 0
    out = "out" if force else "new"
    before = contents(work)
    monkeypatch.setattr(FolderCheckpoint, "_copy_rest", lambda self, out: os.kill(os.getpid(), number))
    monkeypatch.setattr(sys, "argv", ["bone", *MERGE[:5], *force, "--out", out])
    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    handlers = {one: signal.signal(one, signal.default_int_handler) for one in signals}
    try:
        with pytest.raises(SystemExit) as end:
            entry.main()
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    assert end.value.code == 128 + number
    assert "Traceback" not in capsys.readouterr().err
    assert contents(work) == before and not list(work.glob(".*"))


@pytest.mark.slow
def test_commands_are_killed():
    """Some of the long run that ``fuzz/`` documents."""
    only = ("merge --force", "convert", "convert to a file --force")
    command = [
        sys.executable,
        "-m",
        "fuzz.kill",
        "--count",
        "15",
        *(part for name in only for part in ("--only", name)),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'killed': 1" in done.stdout and "0 faults" in done.stdout
