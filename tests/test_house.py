"""The plan of ``src/bone_peft``: what holds beside the order of imports, which ``make lint`` checks."""

import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

import bone_peft

HOUSE = Path(bone_peft.__file__).parent
EXTRAS = (
    "bitsandbytes",
    "datasets",
    "fla",
    "gguf",
    "matplotlib",
    "reasoning_gym",
    "rwkv",
    "rwkv7_hf",
    "tensorboard",
    "trl",
)


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_file_is_told_by_its_name_alone():
    """A command has the name of what it calls; no other two files have the same."""
    names = Counter(path.name for path in HOUSE.rglob("*.py") if path.parent.name != "cli")
    assert [name for name, count in names.items() if count > 1] == ["__init__.py"]


@pytest.mark.parametrize("wing", ["method", "io", "files"])
def test_the_library_needs_no_extra(wing):
    modules = [
        ".".join(path.relative_to(HOUSE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((HOUSE / wing).rglob("*.py"))
    ]
    assert len(modules) > 5
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))"
    python(f"{blocked}\nfrom importlib import import_module\nfor name in {modules}: import_module(name)")


def test_importing_the_package_imports_nothing_and_with_peft_the_method():
    ours = "*(name for name in sys.modules if name.startswith('bone_peft.') or name in ('torch', 'peft'))"
    alone, *loaded = python(f"import sys, bone_peft; print({ours}); import peft; print({ours})").split("\n")
    assert alone == ""
    wings = {name.split(".")[1] for name in loaded[0].split() if "." in name}
    assert wings == {"errors", "method", "rwkv"}


def test_every_public_name_is_there():
    for name in bone_peft.__all__:
        assert getattr(bone_peft, name).__name__ == name
    assert set(bone_peft.__all__) <= set(dir(bone_peft))
    with pytest.raises(AttributeError, match="has no attribute 'unknown'"):
        bone_peft.unknown  # noqa: B018


def test_the_picture_of_the_house_is_the_one_that_the_imports_draw():
    script = Path(__file__).parents[1] / "docs" / "house.py"
    drawn = ElementTree.parse(script.with_suffix(".svg")).findtext(".//{http://purl.org/dc/elements/1.1/}description")
    assert drawn == runpy.run_path(str(script))["facts"](), "python docs/house.py draws it again"
