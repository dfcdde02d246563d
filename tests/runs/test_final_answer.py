"""The answer that a worked solution ends in."""

import sys

import pytest

from bone_peft.errors import BoneError
from bone_peft.runs.data import load_data
from bone_peft.runs.evaluation import score
from bone_peft.runs.evaluation.final_answer import final_answer, same_answer

from .test_matches import PROMPTS, answers_of, rows_with


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("6 * 7 = 42\n#### 42", "42"),
        ("#### 1\nno, wait\n#### 2", "2"),
        ("#### 1,200.\nmore", "1,200"),
        ("####", ""),
        ("#### **-3.5**", "-3.5"),
        ("42", None),
    ],
)
def test_it_is_what_follows_the_last_marker(text, answer):
    assert final_answer(text, "####") == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1,200", "1200.00", True),
        ("$18", "18", True),
        ("50%", "50", True),
        ("-3", "3", False),
        (".5", "5", False),
        ("1e2", "100", True),
        ("Red  car", "red car", True),
        ("red", "blue", False),
        ("nan", "NaN", True),
        ("72 apples", "72", False),
    ],
)
def test_numbers_are_compared_as_numbers(one, other, same):
    assert same_answer(one, other) is same
    assert same_answer(other, one) is same


def test_a_model_is_scored_by_what_it_says_after_the_marker(base, tmp_path):
    model, tokenizer = base
    limit = 12
    said = answers_of(model, tokenizer, limit)
    marker = max(set("".join(said)), key="".join(said).count)
    ends = [final_answer(answer, marker) for answer in said]
    some = next(index for index, end in enumerate(ends) if end)
    # One row is answered as expected but for what is before the marker, one row wholly, the others not at all.
    expected = [f"other{marker}nothing like it" for _ in said]
    expected[some] = f"~{said[some]}"
    rows = rows_with(tmp_path, expected)
    found = score(model, tokenizer, rows, answer_after=marker, max_new_tokens=limit, samples=1)
    assert (found.final_answer, found.exact_match) == (pytest.approx(1 / len(PROMPTS)), 0.0)
    found = score(model, tokenizer, rows, answer_after=marker, max_new_tokens=limit, samples=1, answers=some + 1)
    assert (found.final_answer, found.answered, found.rows) == (pytest.approx(1 / (some + 1)), some + 1, len(PROMPTS))


def test_each_row_is_answered_once_samples_too(base, tmp_path, monkeypatch):
    model, tokenizer = base
    answered = []
    answer_batch = sys.modules[score.__module__].answer_batch
    monkeypatch.setattr(
        sys.modules[score.__module__],
        "answer_batch",
        lambda model, tokenizer, prompts, *rest: (
            answered.extend(prompts) or answer_batch(model, tokenizer, prompts, *rest)
        ),
    )
    rows = rows_with(tmp_path, ["#1"] * 6)
    found = score(model, tokenizer, rows, answer_after="#", max_new_tokens=4, batch_size=4, samples=6, answers=5)
    assert len(answered) == 6
    assert [sample["answer"] for sample in found.samples] == answers_of(model, tokenizer, 4)


def test_rows_without_the_marker_are_named(base, tmp_path):
    model, tokenizer = base
    with pytest.raises(BoneError, match=r"row 2 has nothing after '#'"):
        score(model, tokenizer, rows_with(tmp_path, ["#1", "2", *["#3"] * 4]), answer_after="#")
    with pytest.raises(BoneError, match="marker of a final answer is empty"):
        score(model, tokenizer, rows_with(tmp_path, ["#1"] * 6), answer_after="")


def test_generated_tasks_give_worked_answers_where_they_have_them():
    plain, worked = (load_data(f"gym:gsm_symbolic?size=5&seed=3{more}") for more in ("", "&worked=true"))
    assert plain["prompt"] == worked["prompt"]
    for short, long in zip(plain["completion"], worked["completion"], strict=True):
        assert len(long) > len(short)
        assert same_answer(final_answer(long, "####"), short)
    with pytest.raises(BoneError, match="chain_sum has no worked answers"):
        load_data("gym:chain_sum?size=3&worked=true")
    with pytest.raises(BoneError, match="true or false"):
        load_data("gym:gsm_symbolic?size=3&worked=7")
