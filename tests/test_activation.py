"""``bone activate``: programs that know nothing of Bone find it in PEFT."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bone_peft.cli import activate
from bone_peft.cli.main import app

SOURCE = Path(__file__).parents[1] / "src"


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder that Python takes for one of installed packages."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


def python(environment, code, path=SOURCE):
    """What ``code`` prints in a new Python, with the .pth files of ``environment``."""
    start = f"import sys; sys.path[:0] = [{str(path)!r}]; import site; site.addsitedir({str(environment)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def bone(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture
def stand_in(tmp_path):
    """A PEFT and a Bone that load at once, to try the order of imports with."""
    (tmp_path / "packages" / "peft").mkdir(parents=True)
    (tmp_path / "packages" / "peft" / "__init__.py").write_text("late = True\n")
    (tmp_path / "packages" / "bone_peft_hook.py").write_text((SOURCE / "bone_peft_hook.py").read_text())
    (tmp_path / "packages" / "bone_peft.py").write_text(
        "import sys\ndef register():\n    peft = sys.modules['peft']\n    assert peft.late\n    peft.bone = True\n"
    )
    return tmp_path / "packages"


def test_it_is_one_file_that_comes_and_goes(environment):
    assert "Not active" in bone("activate", "--status")
    assert not list(environment.iterdir())
    bone("activate")
    assert [path.name for path in environment.iterdir()] == ["bone_peft.pth"]
    assert "is active" in bone("activate", "--status")
    bone("activate")
    bone("deactivate")
    assert not list(environment.iterdir())
    assert "was not active" in bone("deactivate")


def test_a_program_finds_bone_in_peft(environment):
    bone("activate")
    code = "from peft import BoneConfig; print(BoneConfig.__module__, BoneConfig().peft_type.value)"
    assert python(environment, code)[0] == "bone_peft.method.tuner.config BONE"


def test_bone_is_there_once_peft_is(environment, stand_in):
    bone("activate")
    code = (
        "import importlib.util; spec = importlib.util.find_spec('peft')\n"
        "print(spec.origin[-16:], type(spec.loader).__name__)\n"
        "print([name for name in sys.modules if 'bone' in name])\n"
        "import peft; print(peft.bone, 'exec_module' in vars(peft.__spec__.loader))"
    )
    printed, _ = python(environment, code, stand_in)
    assert printed.splitlines() == ["peft/__init__.py SourceFileLoader", "['bone_peft_hook']", "True False"]


def test_a_spawned_worker_finds_it_too(environment, stand_in, monkeypatch):
    bone("activate")
    (environment / "worker.py").write_text("def ask():\n    import peft\n    return peft.bone\n")
    # In an environment's own folder Python reads .pth files by itself.
    (environment / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(environment)!r})")
    monkeypatch.setenv("PYTHONPATH", f"{environment}{os.pathsep}{stand_in}")
    code = (
        "import multiprocessing, worker\n"
        "pool = multiprocessing.get_context('spawn').Pool(1)\nprint(pool.apply(worker.ask))\npool.terminate()"
    )
    assert python(environment, code, stand_in)[0] == "True"


@pytest.mark.parametrize("break_it", ["raise RuntimeError('broken')", "def register(): 1 / 0", "syntax error"])
def test_a_broken_bone_is_one_warning(environment, stand_in, break_it):
    bone("activate")
    (stand_in / "bone_peft.py").write_text(break_it)
    printed, said = python(environment, "import peft, peft as again; print(peft.late)", stand_in)
    assert printed == "True"
    assert said.count("could not make Bone a method of PEFT") == 1


def test_without_bone_it_does_nothing(environment, tmp_path):
    bone("activate")
    (tmp_path / "other" / "peft").mkdir(parents=True)
    (tmp_path / "other" / "peft" / "__init__.py").write_text("")
    code = "sys.modules['bone_peft_hook'] = None; import peft; print(1)"
    blocked = f"import sys; sys.modules['bone_peft_hook'] = None; sys.path[:0] = [{str(tmp_path / 'other')!r}]\n"
    blocked += f"import site; site.addsitedir({str(environment)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("1", "")


def test_what_the_line_imports_is_next_to_nothing():
    code = "before = set(sys.modules)\n" + activate._LINE + "print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path.append({str(SOURCE)!r})\n{code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.split() == ["bone_peft_hook"]
