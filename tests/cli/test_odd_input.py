"""Odd options and recipes: one sentence and exit code 2, no traceback, and nothing is left."""

import os

import pytest
from fuzz import odd_input

from .test_commands import bone


@pytest.fixture(autouse=True)
def _environment():
    # What a setting of Transformers leaves in it is not for the next test.
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def words(options):
    """``--set a={b: c}`` is two words: an option's value may hold blanks."""
    flag, _, value = options.partition(" ")
    return [flag, value] if flag in ("--set", "--data", "--lr") else options.split()


def assert_refused(done, named):
    # Typer's own refusals come in a box of several lines.
    sentence = " ".join(done.stderr.replace("│", " ").split())
    boxed = sentence.startswith(("Usage:", "╭"))
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stderr.count("\n") == 1 or boxed, done.stderr
    for word in named.split():
        assert word in sentence, sentence


@pytest.mark.parametrize(("options", "named"), odd_input.TRAIN)
def test_train(chat_base, rows_file, tmp_path, options, named):
    good = ["train", "--base", chat_base, "--data", rows_file, "--fields", "query", "response", "--no-bf16"]
    good += ["--r", 4, "--target-modules", "q_proj", "--steps", 1, "--out", tmp_path / "run"]
    if options.startswith("--data"):
        good = [word for word in good if word not in ("--data", rows_file)]
    assert_refused(bone(*good, *words(options)), named)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "named"), odd_input.EVAL)
def test_eval(chat_base, rows_file, options, named):
    given = words(options)
    data = [] if "--data" in given else ["--data", rows_file]
    fields = [] if "--fields" in given else ["--fields", "query", "response"]
    assert_refused(bone("eval", "--base", chat_base, "--no-bf16", *data, *fields, *given), named)


@pytest.mark.parametrize(("options", "named"), odd_input.GENERATE)
def test_generate(chat_base, options, named):
    assert_refused(bone("generate", "--base", chat_base, "--no-bf16", "--max-new-tokens", 2, *words(options)), named)


@pytest.mark.parametrize("text", odd_input.RECIPES)
def test_recipes(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    assert_refused(bone("train", tmp_path / "recipe.yaml"), "")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_recipes_in_other_encodings(tmp_path, encoding):
    (tmp_path / "recipe.yaml").write_text("base: é", encoding=encoding)
    assert_refused(bone("train", tmp_path / "recipe.yaml"), "recipe.yaml")


def test_rows_in_the_place_of_a_recipe(rows_file):
    assert_refused(bone("train", "--data", rows_file, rows_file), "--data quotes")


def test_a_pattern_is_given_as_one_word(chat_base, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    done = bone(
        "eval", "--base", chat_base, "--no-bf16", "--data", tmp_path / "*.jsonl", "--data", tmp_path / "a.jsonl"
    )
    assert done.exit_code == 0, done.output
    assert done.output.split()[-1] == "3" or " 3 " in done.output
