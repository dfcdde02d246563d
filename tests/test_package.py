"""What a release installs."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
URL = "https://example.org/bone/bone-peft"


def run(*command, **kwargs):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The source distribution, and the wheel that is built from it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    run("-m", "build", "--no-isolation", "-o", str(out), str(source), env=os.environ | {"PROJECT_URL": URL})
    return out


@pytest.fixture(scope="module")
def wheel(dist):
    return zipfile.ZipFile(next(dist.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_string(wheel.read(name).decode())


def test_every_file_of_the_source_is_in_the_wheel(wheel):
    files = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in path.as_posix()
    }
    assert "bone_peft/py.typed" in files
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == files


def test_the_index_can_show_it(dist, metadata):
    run("-m", "twine", "check", "--strict", *map(str, dist.iterdir()))
    assert f"Repository, {URL}" in metadata.get_all("Project-URL")
    version, readme = metadata["Version"], metadata.get_payload()
    assert f"]({URL}/blob/v{version}/docs/formats.md)" in readme
    assert f"]({URL}/raw/v{version}/docs/quality-over-cost.png)" in readme
    assert "](docs/" not in readme


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_it_runs_where_it_is_installed(dist, tmp_path):
    """Without the checkout: from a folder that pip made of the wheel."""
    package = str(next(dist.glob("*.whl")))
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(tmp_path), package)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    code = "import bone_peft; print(bone_peft.__file__); from peft import BoneConfig; print(BoneConfig.__module__)"
    assert run("-c", code, env=env, cwd=tmp_path).split() == [
        str(tmp_path / "bone_peft/__init__.py"),
        "bone_peft.method.tuner.config",
    ]
    version = next(tmp_path.glob("bone_peft-*.dist-info")).name.removeprefix("bone_peft-").removesuffix(".dist-info")
    assert run("-m", "bone_peft", "--version", env=env, cwd=tmp_path).strip().endswith(version)
    assert (tmp_path / "bin/bone").exists()
