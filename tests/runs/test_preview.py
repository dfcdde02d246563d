"""``bone train --dry-run`` tells what a run would do, and does nothing."""

import json
import re

import pytest
from typer.testing import CliRunner

from bone_peft.cli.main import app

from .tiny import sums


def dry_run(base, rows, out, *more) -> str:
    arguments = [
        "train",
        "--base",
        base,
        "--data",
        rows,
        "--fields",
        "query",
        "response",
        "--out",
        str(out),
        "--dry-run",
    ]
    result = CliRunner().invoke(app, [*arguments, "--no-bf16", "--r", "8", *more])
    assert result.exit_code == 0, result.output
    assert not out.exists()
    return result.output


def test_rows_lengths_steps_memory_and_time(chat_base, rows_file, tmp_path):
    output = dry_run(chat_base, rows_file, tmp_path / "out", "--epochs", "2", "--batch-size", "4", "--grad-accum", "3")
    assert "<u>37+1=</s><a>⟦38</s>⟧" in output.replace(" ", "")
    rows = [(len(row["query"]), len(row["response"])) for row in sums(24)]
    tokens, learned = sum(q + a + 4 for q, a in rows), sum(a + 1 for _, a in rows)
    assert f"24 rows of {tokens} tokens, {learned} of them learned; 4 steps of 12 rows." in output
    bars = [int(count) for count in re.findall(r"^ *\d+ to \d+ +(\d+)", output, flags=re.M)]
    assert sum(bars) == 24 and len(bars) <= 8
    assert re.search(r"Memory: \d+\.\d+ GiB \(base and adapter", output) and "Time: " in output


def test_of_long_rows_the_ends_are_shown(plain_base, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a" * 300 + "b" * 500 + "c" * 300}) + "\n")
    arguments = ["train", "--base", plain_base, "--data", str(rows), "--out", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(app, [*arguments, "--max-length", "1200", "--r", "8"])
    assert result.exit_code == 0, result.output
    assert re.search(r" \.\.\. 502 tokens \.\.\. ", result.output)
    shown = {letter: result.output.count(f" {letter}") for letter in "abc"}
    assert shown["a"] >= 297 and shown["c"] >= 297 and shown["b"] < 10


@pytest.mark.parametrize("out", ["new", "there"])
def test_a_run_that_is_there_stays(plain_base, rows_file, tmp_path, out):
    if out == "there":
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "recipe.yaml").write_text("base: x\n")
    result = CliRunner().invoke(
        app,
        [
            *("train", "--base", plain_base, "--data", rows_file, "--fields", "query", "response", "--r", "8"),
            *("--out", str(tmp_path / out), "--dry-run"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.rglob("*")) == (["recipe.yaml", "there"] if out == "there" else [])
