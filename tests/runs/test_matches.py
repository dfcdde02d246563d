"""Exact match without writing out what cannot match any more: the same as comparing whole greedy answers."""

import sys

import pytest

from bone_peft.runs.data import load_data
from bone_peft.runs.evaluation import score
from bone_peft.runs.evaluation.answers import answer_batch
from bone_peft.runs.evaluation.matches import can_become, greedy_start, is_plain
from bone_peft.runs.evaluation.tokens import encode_prompt

from .tiny import write_rows

PROMPTS = ["12+30=", "5+5=", "1", "99+1=", "abc", "37+1="]


def answers_of(model, tokenizer, limit):
    """What is compared without a shortcut: whole answers."""
    return answer_batch(model, tokenizer, [encode_prompt(prompt, tokenizer) for prompt in PROMPTS], limit)


def rows_with(tmp_path, answers):
    rows = [{"query": prompt, "response": answer} for prompt, answer in zip(PROMPTS, answers, strict=True)]
    return load_data(str(write_rows(tmp_path / "rows.jsonl", rows)), fields=("query", "response"))


@pytest.fixture
def written(monkeypatch):
    """How many tokens are generated."""
    counted = []
    module = sys.modules[answer_batch.__module__]
    real = module.greedy_tokens

    def counting(model, *args, **kwargs):
        old = model.generate

        def generate(**kw):
            out = old(**kw)
            counted.append(out.shape[1] - kw["input_ids"].shape[1])
            return out

        model.generate = generate
        try:
            return real(model, *args, **kwargs)
        finally:
            del model.generate

    monkeypatch.setattr(sys.modules["bone_peft.runs.evaluation.matches"], "greedy_tokens", counting)
    return counted


@pytest.mark.parametrize("limit", [1, 3, 7, 40])
def test_as_many_match_as_with_whole_answers(base, tmp_path, limit, written):
    model, tokenizer = base
    truth = answers_of(model, tokenizer, limit)
    wrong = {1: lambda text: text + "7", 3: lambda text: "7" + text, 4: lambda text: text[:-1] or "7"}
    expected = [wrong.get(index, lambda text: text)(text) or "7" for index, text in enumerate(truth)]
    rows = rows_with(tmp_path, expected)
    found = score(model, tokenizer, rows, max_new_tokens=limit, batch_size=4)
    assert found.exact_match == sum(map(str.__eq__, truth, (text.strip() for text in expected))) / len(PROMPTS) > 0
    assert [sample["answer"] for sample in found.samples] == truth


def test_what_cannot_match_is_not_written_out(base, tmp_path, written):
    model, tokenizer = base
    truth = answers_of(model, tokenizer, 200)
    rows = rows_with(tmp_path, ["7" if text[:1] != "7" else "8" for text in truth])
    assert score(model, tokenizer, rows, max_new_tokens=200, samples=0).exact_match == 0
    assert sum(written) <= 3


def test_a_config_that_changes_greedy_answers(base, tmp_path):
    model, tokenizer = base
    assert is_plain(model)
    before = answers_of(model, tokenizer, 12)
    model.generation_config.repetition_penalty = 4.0
    assert not is_plain(model)
    truth = answers_of(model, tokenizer, 12)
    assert truth != before
    rows = rows_with(tmp_path, [text or "7" for text in truth])
    assert score(model, tokenizer, rows, max_new_tokens=12).exact_match == sum(map(bool, truth)) / len(PROMPTS)


@pytest.mark.parametrize(
    ("likely", "expected", "limit", "start", "is_whole"),
    [
        ([4, 5, 9], [4, 5, 9], 8, [4, 5, 9], True),
        ([4, 6, 9], [4, 5, 9], 8, [4, 6], False),
        ([4, 9, 5], [4, 5, 9], 8, [4, 9], True),
        ([4, 5, 9], [4, 5, 9], 2, [4, 5], True),
        ([4, 5], [4, 5], 8, [4, 5], False),
        ([], [], 8, [], False),
    ],
)
def test_how_an_answer_starts(likely, expected, limit, start, is_whole):
    assert greedy_start(likely, expected, frozenset({9}), limit) == (start, is_whole)


@pytest.mark.parametrize(
    ("text", "can"),
    [
        ("", True),
        ("  a", True),
        ("a b", True),
        ("a  b", False),
        ("a b c", False),
        ("a b\n\n", True),
        ("a \ufffd", True),
    ],
)
def test_what_can_become_what(text, can):
    assert can_become(text, "a b") is can
