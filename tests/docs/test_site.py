"""The documentation builds, every link in it leads somewhere, and what it names is there."""

import re
import runpy
from pathlib import Path

import pytest

import bone_peft

pytest.importorskip("material", reason="the docs extra is not installed")
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[2]


def test_it_builds_strictly(tmp_path):
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    readme = (tmp_path / "repository" / "index.html").read_text(encoding="utf-8")
    assert 'href="../guides/chat-model.html"' in readme and 'href="docs/' not in readme
    assert "<math" in (tmp_path / "method.html").read_text(encoding="utf-8")
    train = (tmp_path / "commands" / "train.html").read_text(encoding="utf-8")
    assert "--early-stopping" in train and "[bold]" not in train
    named = set(re.findall(r'id="(bone_peft\.[\w.]+)"', (tmp_path / "python-api.html").read_text(encoding="utf-8")))
    assert {name.rpartition(".")[2] for name in named} >= set(bone_peft.__all__)


@pytest.mark.parametrize(
    "mistake",
    [
        "[a page](missing.md)",
        "[a heading](index.md#missing)",
        "![a picture](missing.svg)",
        "::: bone_peft.missing",
        "::: bone_peft.method.check.missing",
    ],
)
def test_a_mistake_fails_the_build(mistake, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{mistake}\n", encoding="utf-8")
    changed = {"docs_dir": str(tmp_path / "docs"), "site_dir": str(tmp_path / "site"), "nav": None, "hooks": []}
    with pytest.raises((Abort, SystemExit)):
        build(load_config(str(ROOT / "mkdocs.yml"), strict=True, extra_css=[], **changed))


def test_a_page_that_nothing_leads_to_fails_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("index", "lost"):
        (tmp_path / "docs" / f"{name}.md").write_text(f"# {name}\n", encoding="utf-8")
    changed = {"docs_dir": str(tmp_path / "docs"), "site_dir": str(tmp_path / "site"), "hooks": []}
    with pytest.raises(Abort):
        build(load_config(str(ROOT / "mkdocs.yml"), strict=True, extra_css=[], nav=[{"Start": "index.md"}], **changed))


def test_links_within_the_repository_become_links_within_the_site():
    links = runpy.run_path(str(ROOT / "docs" / "hooks" / "links.py"))
    there = "[a](README.md) [b](docs/house.svg) [c](docs/speed.md#x) [d](https://example.org) [e](nowhere.md)"
    assert links["targets"](there, "CONTRIBUTING.md") == ["README.md", "docs/house.svg", "docs/speed.md"]
    assert links["targets"]("[a](../benchmarks/run-3b.png) [b](../../outside)", "docs/speed.md") == [
        "benchmarks/run-3b.png"
    ]


def test_the_pictures_of_the_variants_are_those_that_the_script_draws():
    script = runpy.run_path(str(ROOT / "docs" / "variants.py"))
    drawn = {f"{name}.svg": script["picture"](name) for name in script["DRAWN"]}
    there = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "pictures").iterdir()}
    assert there == drawn, "python docs/variants.py draws them again"
