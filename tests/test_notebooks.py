"""The notebooks as they are committed: sound, without outputs, and Python. ``checks.notebooks`` runs them."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_sound(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "%pip install" in code[0].source and "BONE_BASE" in code[1].source
    for cell in code:
        if not cell.source.startswith("%%bash\n"):
            ast.parse(re.sub(r"^(\s*)%pip .*$", r"\1pass", cell.source, flags=re.M))
    for link in re.findall(r"\]\(([^)#]+)\)", "".join(c.source for c in notebook.cells if c.cell_type == "markdown")):
        assert (path.parent / link).is_file(), link


def test_there_are_some():
    assert [path.stem for path in NOTEBOOKS] == ["bat-against-lora", "fine-tune-and-merge"]
