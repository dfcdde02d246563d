"""Questions with choices: how they are read, and how often the right one is the most likely."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from bone_peft.errors import BoneError
from bone_peft.runs.data import load_data
from bone_peft.runs.evaluation import score
from bone_peft.runs.evaluation.tokens import encode

from .tiny import write_rows

TEXTS = ["red", "blue and green", "no"]
FORMS = [
    {"question": "2+2", "choices": TEXTS, "answer": 1, "subject": "colours"},
    {"question": "2+2", "choices": {"text": TEXTS, "label": ["A", "B", "C"]}, "answerKey": "B"},
    {"question": "2+2", "choices": {"text": TEXTS, "label": ["1", "2", "3"]}, "answerKey": "2"},
    {"ctx": "2+2", "endings": TEXTS, "label": "1"},
    {"question": "2+2", "options": TEXTS, "answer": "B"},
    {"question": "2+2", "choices": TEXTS, "answer": "blue and green"},
]


@pytest.mark.parametrize("row", FORMS)
def test_the_right_choice_is_learned(row, tmp_path):
    file = str(write_rows(tmp_path / "rows.jsonl", [row]))
    asked = {"prompt": "2+2" if "ctx" in row else "Question: 2+2\nAnswer:", "completion": " blue and green"}
    assert load_data(file).to_list() == [asked]
    assert load_data(file, choices=True).to_list() == [asked | {"choices": [" blue and green", " red", " no"]}]
    (own,) = load_data(file, template="{prompt} = {completion}!", choices=True)
    assert own == {
        "prompt": "2+2 =",
        "completion": " blue and green!",
        "choices": [" blue and green!", " red!", " no!"],
    }


def test_a_chat_has_the_question_and_the_choice_as_they_are(chat_base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(chat_base)
    (row,) = load_data(str(write_rows(tmp_path / "rows.jsonl", FORMS[:1])), tokenizer=tokenizer, choices=True)
    assert row["prompt"] == [{"role": "user", "content": "2+2"}]
    assert row["completion"] == [{"role": "assistant", "content": "blue and green"}]
    assert row["choices"] == ["blue and green", "red", "no"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": 3}, r"Row 1 of .*'answer' must say which"),
        ({"answer": "purple"}, "'answer' must say which"),
        ({"choices": ["red"]}, "'choices' must hold two texts"),
        ({"choices": "red"}, "'choices' must hold two texts"),
    ],
)
def test_rows_that_do_not_say_it_are_named(change, says, tmp_path):
    file = str(write_rows(tmp_path / "rows.jsonl", [FORMS[0] | change]))
    with pytest.raises(BoneError, match=says):
        load_data(file)


def test_named_columns_are_taken_as_they_are(tmp_path):
    file = str(write_rows(tmp_path / "rows.jsonl", [FORMS[0]]))
    assert load_data(file, fields=("question", "answer")).to_list() == [{"prompt": "2+2", "completion": "1"}]


def test_sources_with_choices_and_without_do_not_mix(tmp_path):
    one = str(write_rows(tmp_path / "one.jsonl", [FORMS[0]]))
    other = str(write_rows(tmp_path / "other.jsonl", [{"prompt": "a", "completion": "b"}]))
    assert len(load_data([one, other])) == 2
    with pytest.raises(BoneError, match="some have choices, some none"):
        load_data([one, other], choices=True)


def test_the_share_is_that_of_the_least_loss_in_float64(base, tmp_path):
    model, tokenizer = base
    draw = torch.Generator().manual_seed(0)
    rows = []
    for index in range(24):
        texts = ["".join(chr(97 + int(torch.randint(26, (), generator=draw))) for _ in range(4)) for _ in range(3)]
        rows.append({"question": f"{index}?", "choices": texts, "answer": index % 3})
    held_out = load_data(str(write_rows(tmp_path / "rows.jsonl", rows)), choices=True)
    found = score(model, tokenizer, held_out, samples=1, answers=1, batch_size=7)
    right, exact = 0, model.double()
    for row in rows:
        losses = []
        for text in row["choices"]:
            plain = {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {text}"}
            prompt, completion = encode(plain, tokenizer)
            with torch.no_grad():
                logits = exact(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            losses.append(float(cross_entropy(logits, torch.tensor(completion), reduction="sum")))
        right += min(range(3), key=losses.__getitem__) == row["answer"]
    assert 0 < right < len(rows)
    assert found.choice == pytest.approx(right / len(rows))


def test_a_choice_that_is_beyond_the_model_is_named(base, tmp_path):
    model, tokenizer = base
    model.config.max_position_embeddings = 40
    model.model.position_embeddings = torch.nn.Embedding(40, 4)  # positions that are learned come to an end
    rows = [{"question": "a", "choices": ["b", "c" * 60], "answer": 0}]
    held_out = load_data(str(write_rows(tmp_path / "rows.jsonl", rows)), choices=True)
    with pytest.raises(BoneError, match="this base reads 40 at most"):
        score(model, tokenizer, held_out, samples=1)
