"""What a base cannot read is refused by name, in training, scoring and generating."""

import sys

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from bone_peft.errors import BoneError
from bone_peft.files.bases import load_base
from bone_peft.runs import free_memory
from bone_peft.runs.data import load_data
from bone_peft.runs.evaluation import answer_samples, score, stream_answer
from bone_peft.runs.training import train

from .test_train import recipe
from .tiny import make_base, sums, write_rows


def gpt2(folder, plain_base, **sizes):
    """A base with learned positions and the tests' tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(plain_base)
    settings = {"vocab_size": len(tokenizer), "n_positions": 24, "n_embd": 32, "n_layer": 1, "n_head": 2} | sizes
    GPT2LMHeadModel(GPT2Config(**settings, bos_token_id=1, eos_token_id=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def long_rows(folder, length):
    return str(write_rows(folder / "rows.jsonl", [*sums(3), {"query": "q" * length, "response": "42"}]))


def test_rows_beyond_the_learned_positions(plain_base, tmp_path):
    base = gpt2(tmp_path / "base", plain_base)
    plan = recipe(base, long_rows(tmp_path, 30), tmp_path / "run")
    with pytest.raises(BoneError, match=r"33 tokens long.*reads 24 at most.*max_length"):
        train(plan)
    assert not (tmp_path / "run").exists()
    result = train(plan.with_values({"training.max_length": 24}))
    # The question that was too long is not answered, and stops nothing.
    assert len(result.samples) == 4
    model, tokenizer = load_base(base, dtype="float32")
    rows = load_data(plan.data, fields=plan.fields)
    with pytest.raises(BoneError, match="reads 24 at most"):
        score(model, tokenizer, rows)
    assert score(model, tokenizer, rows.select(range(3)), max_new_tokens=500).rows == 3
    assert len(answer_samples(model, tokenizer, rows.select(range(3)), max_new_tokens=500)) == 3
    with pytest.raises(BoneError, match="reads 24 at most"):
        stream_answer(model, tokenizer, "q" * 30, echo=False)
    stream_answer(model, tokenizer, "q" * 20, max_new_tokens=500, echo=False)


def test_a_tokenizer_of_another_base(plain_base, rows_file, tmp_path):
    base = gpt2(tmp_path / "base", plain_base, vocab_size=20)
    with pytest.raises(BoneError, match=r"token \d+, and the base knows 20"):
        train(recipe(base, rows_file, tmp_path / "run"))
    model, tokenizer = load_base(base, dtype="float32")
    with pytest.raises(BoneError, match="knows 20"):
        score(model, tokenizer, load_data(rows_file, fields=("query", "response")))


def test_a_score_that_is_no_number_is_none(plain_base, rows_file):
    model, tokenizer = load_base(plain_base, dtype="float32")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(BoneError, match="not a finite number"):
        score(model, tokenizer, load_data(rows_file, fields=("query", "response")))


def test_a_template_that_refuses_the_rows(rows_file, tmp_path):
    base = make_base(tmp_path / "base", chat=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['content'] == '37+1=' %}{{ raise_exception('No sums, please.') }}"
        "{% endif %}{{ m['content'] }}</s>{% endfor %}"
    )
    tokenizer.save_pretrained(base)
    with pytest.raises(BoneError, match=r"chat template refuses these messages: No sums, please\."):
        train(recipe(str(base), rows_file, tmp_path / "run"))
    model, tokenizer = load_base(str(base), dtype="float32")
    rows = load_data(rows_file, fields=("query", "response"), tokenizer=tokenizer)
    with pytest.raises(BoneError, match=r"refuses these messages: No sums, please\."):
        score(model, tokenizer, rows)


def test_documents_of_a_tokenizer_without_an_end(tmp_path):
    base = make_base(tmp_path / "base", chat=False)
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "abc"}, {"text": "defgh"}])
    model, tokenizer = load_base(str(base), dtype="float32")
    assert len(answer_samples(model, tokenizer, load_data(str(rows)))) == 2


def test_rows_are_scored_as_many_at_once_as_memory_holds(plain_base, tmp_path, monkeypatch):
    from bone_peft.runs.evaluation import score as scoring

    model, tokenizer = load_base(plain_base, dtype="float32")
    rows = load_data(long_rows(tmp_path, 30), fields=("query", "response"))
    batches = []
    whole, forward = score(model, tokenizer, rows), model.forward
    monkeypatch.setattr(model, "forward", lambda **kw: batches.append(len(kw["input_ids"])) or forward(**kw))
    module = sys.modules[scoring.__module__]
    one_row = model.config.vocab_size * 16 * 33 + 33 * 33 * 4
    monkeypatch.setattr(free_memory, "free_bytes", lambda _: one_row / 0.85 + 1)
    monkeypatch.setattr(module, "count_matches", lambda *args: 0)
    small = score(model, tokenizer, rows, samples=0)
    assert len(batches) > 1 and sum(batches) == 4 and batches[-1] == 1
    assert small.loss == pytest.approx(whole.loss, rel=1e-5)
    monkeypatch.setattr(free_memory, "free_bytes", lambda _: one_row / 0.85 - 1)
    with pytest.raises(BoneError, match=r"33 tokens long: its score takes 0.0 GiB"):
        score(model, tokenizer, rows)
