"""What is written appears whole, a failure leaves nothing, and what is not ours stays."""

import errno
import fcntl
import os
import re
import sys
from pathlib import Path

import pytest

from bone_peft import BoneError
from bone_peft.io import rename
from bone_peft.io.locks import BusyError, locked
from bone_peft.io.ours import MANIFEST, FileOf, FolderOf
from bone_peft.io.whole import check_free, whole_file, whole_folder

KIND = FolderOf("config", re.compile("config|weights"))


@pytest.fixture(params=["renameat2", "plain"])
def renames(request, monkeypatch):
    """With the system's renames, and as on a system that has only the plain one."""
    if request.param == "plain":
        monkeypatch.setattr(rename, "_renameat2", lambda *_: False)
    return request.param


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_folder(target, text, **options):
    with whole_folder(target, KIND, **options) as staging:
        (staging / "config").write_text(text)


def write_file(target, text, **options):
    with whole_file(target, **options) as staging:
        staging.write_text(text)


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_failure_takes_the_new_parents_away_too(tmp_path, whole):
    with pytest.raises(RuntimeError), whole(tmp_path / "new" / "newer" / "out"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with whole(tmp_path / "new" / "newer" / "out") as staging:
        staging.mkdir(exist_ok=True) if whole is whole_folder else staging.touch()
    assert [path.name for path in (tmp_path / "new" / "newer").iterdir()] == ["out"]


@pytest.mark.parametrize("name", [".", "/", "", ".."])
@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_name_is_needed(whole, name):
    with pytest.raises(BoneError, match="no name"), whole(name):
        pass


def test_files_and_folders_do_not_replace_each_other(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BoneError, match="is a file"), whole_folder(tmp_path / "file", replace=True):
        pass
    with pytest.raises(BoneError, match="is a folder"), whole_file(tmp_path / "folder"):
        pass
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("there", ["file", "folder", "empty folder", "link to nowhere"])
@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_what_appears_meanwhile_is_not_replaced(tmp_path, renames, whole, there):
    out = tmp_path / "out"
    with pytest.raises(BoneError, match="out"), whole(out, replace=False) as staging:
        (staging / "new" if whole is whole_folder else staging).write_text("new")
        if there == "file":
            out.write_text("mine")
        elif there == "link to nowhere":
            out.symlink_to("nowhere/at/all")
        else:
            out.mkdir()
            if there == "folder":
                (out / "notes").write_text("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.is_symlink() == (there == "link to nowhere") and out.is_dir() == there.endswith("folder")
    assert contents(tmp_path) == {"file": {"out": "mine"}, "folder": {"out/notes": "mine"}}.get(there, {})


@pytest.mark.parametrize("made", [os.mkdir, lambda path: open(path, "x").close()])
def test_nor_what_appears_at_the_last_moment(tmp_path, renames, monkeypatch, made):
    put = rename.put
    monkeypatch.setattr("bone_peft.io.whole.put", lambda staging, target: (made(target), put(staging, target)))
    for write in (write_folder, write_file):
        with pytest.raises(BoneError, match="appeared while"):
            write(tmp_path / "out", "new", replace=False)
        assert [path.name for path in tmp_path.iterdir()] == ["out"] and not contents(tmp_path).get("out")
        os.rmdir(tmp_path / "out") if (tmp_path / "out").is_dir() else os.remove(tmp_path / "out")


def test_an_exchange(tmp_path, renames):
    write_folder(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out", KIND, replace=True):
        raise RuntimeError
    assert contents(tmp_path / "out")["config"] == "old"
    write_folder(tmp_path / "out", "new", replace=True)
    assert (
        contents(tmp_path).keys() == {"out/config", f"out/{MANIFEST}"}
        and (tmp_path / "out/config").read_text() == "new"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's")
def test_an_exchange_is_one_call_where_there_is_one(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", "old")
    monkeypatch.delattr(Path, "rename")
    monkeypatch.delattr(Path, "replace")
    write_folder(tmp_path / "out", "new", replace=True)
    write_folder(tmp_path / "out2", "new")
    assert (tmp_path / "out" / "config").read_text() == (tmp_path / "out2" / "config").read_text() == "new"


def test_an_exchange_that_fails_halfway_is_undone(tmp_path, monkeypatch):
    monkeypatch.setattr(rename, "_renameat2", lambda *_: False)
    write_folder(tmp_path / "out", "old")
    plain = type(tmp_path).rename

    def fail(self, to):
        if self.suffix == ".partial":
            raise PermissionError(errno.EACCES, "Permission denied", str(to))
        return plain(self, to)

    monkeypatch.setattr(type(tmp_path), "rename", fail)
    with pytest.raises(PermissionError):
        write_folder(tmp_path / "out", "new", replace=True)
    assert (
        contents(tmp_path).keys() == {"out/config", f"out/{MANIFEST}"}
        and (tmp_path / "out/config").read_text() == "old"
    )


def test_a_file_on_a_system_without_links(tmp_path, monkeypatch):
    monkeypatch.setattr(rename, "_renameat2", lambda *_: False)
    monkeypatch.setattr(rename, "_linked", lambda *_: False)
    write_file(tmp_path / "out", "new", replace=False)
    assert contents(tmp_path) == {"out": "new"}


def killed(action):
    """Do something in a fork, which ends where the action calls ``os._exit``."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("force", [True, False])
def test_a_kill_between_two_plain_renames(tmp_path, monkeypatch, force):
    """The old one is there for the next run, which puts it back before it does anything else."""
    monkeypatch.setattr(rename, "_renameat2", lambda *_: False)
    out = tmp_path / "out"
    write_folder(out, "old")

    def action():
        plain = type(out).rename
        monkeypatch.setattr(
            type(out), "rename", lambda self, to: os._exit(9) if self.suffix == ".partial" else plain(self, to)
        )
        write_folder(out, "new", replace=True)

    killed(action)
    assert not out.exists() and {path.suffix for path in tmp_path.iterdir()} == {".partial", ".old"}
    if force:
        write_folder(out, "newer", replace=True)
    else:
        with pytest.raises(BoneError, match="exists already"):
            write_folder(out, "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "config").read_text() == ("newer" if force else "old")


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_a_kill_after_the_name_was_taken(tmp_path, monkeypatch, write):
    monkeypatch.setattr(rename, "_renameat2", lambda *_: False)
    monkeypatch.setattr(rename, "_linked", lambda *_: False)
    out = tmp_path / "out"

    def action():
        monkeypatch.setattr(type(out), "replace", lambda self, to: os._exit(9))
        write(out, "new", replace=False)

    killed(action)
    assert out.exists() and contents(tmp_path).get("out", "") == ""
    write(out, "new", replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", [whole_file, whole_folder])
def test_a_signal_as_soon_as_there_is_something(tmp_path, monkeypatch, write):
    def stopped(path):
        assert path.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("bone_peft.io.whole.locked", stopped)
    with pytest.raises(KeyboardInterrupt), write(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    dead, living = tmp_path / ".out.00c0ffee.partial", tmp_path / ".out.0badcafe.partial"
    others = [tmp_path / name for name in (".out.other.partial", ".out.2.00c0ffee.partial", "out.00c0ffee.partial")]
    for folder in (dead, living, *others):
        folder.mkdir()
        (folder / "file").write_text("4 GB")
    with locked(living):
        write_folder(tmp_path / "out", "new")
        assert sorted(tmp_path.iterdir()) == sorted([living, *others, tmp_path / "out"])
    write_file(tmp_path / "out2", "new")
    assert living.exists()
    with pytest.raises(BoneError, match="exists already"):
        write_folder(tmp_path / "out", "new")
    assert not living.exists()


def test_where_there_are_no_locks_everything_else_works(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    left = tmp_path / ".out.00c0ffee.partial"
    left.mkdir()
    for text in ("old", "new"):
        write_folder(tmp_path / "out", text, replace=True)
        assert (tmp_path / "out" / "config").read_text() == text
    assert left.exists()  # somebody may be writing there


def test_a_lock_is_for_one(tmp_path):
    with locked(tmp_path) as known:
        assert known
        with pytest.raises(BusyError), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_links_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "disk" / "folder")
    (tmp_path / "file").symlink_to("disk/file")
    for text in ("old", "new"):
        write_folder(tmp_path / "folder", text, replace=True)
        write_folder("~/folder", text, replace=True)
        write_file(tmp_path / "file", text)
        assert (tmp_path / "folder").is_symlink() and (tmp_path / "file").is_symlink()
        for file in ("disk/folder/config", "home/folder/config", "disk/file"):
            assert (tmp_path / file).read_text() == text and not (tmp_path / file).is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BoneError, match="back to itself"):
        write_file(tmp_path / "loop", "new")
    with pytest.raises(BoneError, match="no home folder"):
        write_file("~nobody-of-that-name/out", "new")


def add_file(out):
    (out / "notes.txt").write_text("mine")


def add_folder(out):
    (out / "notes.txt").mkdir()


def add_link(out):
    (out / "notes.txt").symlink_to("..")


def replace_folder_by_link(out):
    (out / "part" / "weights").unlink()
    (out / "part").rmdir()
    (out / "part").symlink_to("..")


@pytest.mark.parametrize(
    ("change", "names"),
    [(add_file, "notes.txt"), (add_folder, "notes.txt"), (add_link, "notes.txt"), (replace_folder_by_link, "part")],
)
def test_what_is_not_ours_is_named_and_kept(tmp_path, change, names):
    out = tmp_path / "out"
    with whole_folder(out, KIND) as staging:
        (staging / "config").write_text("old")
        (staging / "part").mkdir()
        (staging / "part" / "weights").write_text("old")
    change(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BoneError, match=f"holds {names}, not written by bone"):
        write_folder(out, "new", replace=True)
    assert sorted(tmp_path.rglob("*")) == before and (out / "config").read_text() == "old"


def test_what_comes_while_the_new_one_is_written_is_kept(tmp_path):
    write_folder(tmp_path / "out", "old")
    with pytest.raises(BoneError, match=r"holds notes\.txt"), whole_folder(tmp_path / "out", KIND, replace=True):
        add_file(tmp_path / "out")
    assert contents(tmp_path / "out")["notes.txt"] == "mine" and contents(tmp_path / "out")["config"] == "old"


def test_links_are_deleted_and_not_what_they_lead_to(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    write_folder(tmp_path / "out", "old")
    (tmp_path / "out" / "config").unlink()
    (tmp_path / "out" / "config").symlink_to("../mine")
    write_folder(tmp_path / "out", "new", replace=True)
    assert (tmp_path / "mine" / "file").read_text() == "mine" and not (tmp_path / "out" / "config").is_symlink()


@pytest.mark.parametrize("listed", [None, "{", '{"files": 1}', '{"files": ["../mine", "/etc", "config"]}'])
def test_folders_without_a_sound_manifest_are_known_by_their_names(tmp_path, listed):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config").write_text("0.1")
    if listed is not None:
        (out / MANIFEST).write_text(listed)
    (tmp_path / "mine").write_text("mine")
    assert KIND.strangers(out) == ([MANIFEST] if listed is not None and "config" not in listed else [])
    (out / "config").rename(out / "weights")
    assert "weights" in KIND.strangers(out)  # the mark is missing, or it is not listed


def test_a_file_is_replaced_if_it_is_of_the_kind(tmp_path):
    kind = FileOf(re.compile(rb'\{"ours"'))
    out = tmp_path / "out.json"
    write_file(out, '{"ours": 1}', kind=kind)
    write_file(out, '{"ours": 2}', kind=kind)
    for content in ('{"theirs": "{\\"ours\\""}', ""):
        out.write_text(content)
        with pytest.raises(BoneError, match="not a file that this command wrote"):
            write_file(out, '{"ours": 3}', kind=kind)
        assert out.read_text() == content
    with pytest.raises(BoneError, match="not a file"):
        check_free(os.devnull, kind, replace=True)


def test_an_output_is_no_input_and_holds_none(tmp_path, monkeypatch):
    base = tmp_path / "models" / "base"
    base.mkdir(parents=True)
    (base / "config").write_text("mine")
    (tmp_path / "link").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    for out in (base, tmp_path / "models", tmp_path / "link", "models/base/../base", base / "config"):
        with pytest.raises(BoneError, match="is in use"):
            check_free(out, KIND, replace=True, inputs=(None, "a/hub-name", str(base / "config"), tmp_path / "link"))
    assert check_free(base / "new", KIND, replace=True, inputs=(base,)) == base / "new"
    with pytest.raises(BoneError, match="is in use"):
        check_free("../" + tmp_path.name, KIND, replace=True)
    assert contents(tmp_path) == {"models/base/config": "mine"}
