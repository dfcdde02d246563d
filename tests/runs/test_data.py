"""Sources and the one form they take."""

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset

from bone_peft.errors import BoneError
from bone_peft.runs.data import document_start, load_data, without

CHATTY = SimpleNamespace(chat_template="{{ messages }}")
ROWS = [{"query": "a", "response": "b"}, {"query": "c", "response": "d"}]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_json_lines_json_and_parquet_give_the_same_rows(tmp_path):
    lines = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, ROWS)))
    array = write(tmp_path / "x.json", json.dumps(ROWS))
    Dataset.from_list(ROWS).to_parquet(tmp_path / "x.parquet")
    for source in (lines, array, str(tmp_path / "x.parquet")):
        rows = load_data(source, fields=("query", "response"))
        assert rows.to_list() == [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def test_a_chat_template_makes_messages_unless_refused(tmp_path):
    source = write(tmp_path / "x.jsonl", json.dumps({"prompt": "a", "completion": "b"}))
    assert load_data(source, tokenizer=CHATTY)[0] == {
        "prompt": [{"role": "user", "content": "a"}],
        "completion": [{"role": "assistant", "content": "b"}],
    }
    assert load_data(source, tokenizer=CHATTY, chat=False)[0] == {"prompt": "a", "completion": "b"}
    with pytest.raises(BoneError, match="no chat template"):
        load_data(source, chat=True)


def test_messages_split_before_the_last_answer(tmp_path):
    turns = [
        {"role": r, "content": c} for r, c in (("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"))
    ]
    source = write(tmp_path / "x.jsonl", json.dumps({"messages": turns}))
    row = load_data(source, tokenizer=CHATTY)[0]
    assert row == {"prompt": turns[:3], "completion": turns[3:]}
    with pytest.raises(BoneError, match="chat template"):
        load_data(source)
    unanswered = write(tmp_path / "y.jsonl", json.dumps({"messages": turns[:3]}))
    assert load_data(unanswered, tokenizer=CHATTY)[0] == {"prompt": turns[:1], "completion": turns[1:2]}
    for few in (turns[:1], turns[1:2], []):
        bad = write(tmp_path / "z.jsonl", json.dumps({"messages": few}))
        with pytest.raises(BoneError, match=r"Row 1 .*assistant"):
            load_data(bad, tokenizer=CHATTY)


def test_template_and_numbers(tmp_path):
    source = write(tmp_path / "x.jsonl", json.dumps({"q": "2+2", "a": 4}))
    assert load_data(source, fields=("q", "a"), template="Q: {prompt}\nA: ")[0] == {
        "prompt": "Q: 2+2\nA: ",
        "completion": "4",
    }
    with pytest.raises(BoneError, match=r"\{prompt\}"):
        load_data(source, fields=("q", "a"), template="Q:")


def test_missing_fields_are_named_with_what_is_there(tmp_path):
    source = write(tmp_path / "x.jsonl", json.dumps(ROWS[0]))
    with pytest.raises(BoneError, match=r"x.jsonl has no field 'answer'.*query, response.*--fields"):
        load_data(source, fields=("query", "answer"))
    with pytest.raises(BoneError, match="'prompt' or 'completion'"):
        load_data(source)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("none.jsonl", None, "no data file"),
        ("none.parquet", None, "no data file"),
        ("empty.jsonl", "", "empty"),
        ("empty.json", "[]", "no rows|empty|not readable"),
        ("bad.jsonl", '{"query": "a"}\n{"query": ', "line 2"),
        ("list.jsonl", '{"query": "a"}\n[1]\n', "line 2 holds no object"),
        ("bad.parquet", "PAR1", "not a readable Parquet"),
        ("null.jsonl", '{"prompt": "a", "completion": null}', "Row 1 .*completion"),
        ("blank.jsonl", '{"prompt": "a", "completion": ""}', "Row 1 .*completion"),
    ],
)
def test_unreadable_files_get_one_sentence(tmp_path, name, text, says):
    path = tmp_path / name
    if text is not None:
        write(path, text)
    with pytest.raises(BoneError, match=says) as error:
        load_data(str(path))
    assert "\n" not in str(error.value)


def test_generated_tasks_are_seeded_and_take_options():
    first = load_data("gym:chain_sum?min_terms=2&max_terms=2&size=20&seed=5")
    again = load_data("gym:chain_sum?min_terms=2&max_terms=2&size=20&seed=5")
    other = load_data("gym:chain_sum?min_terms=2&max_terms=2&size=20&seed=6")
    assert len(first) == 20
    assert first.to_list() == again.to_list() != other.to_list()
    for row in first:
        expression = row["prompt"].split(":")[1].removesuffix("=")
        assert len(expression.split()) == 3
        assert str(eval(expression)) == row["completion"]


def test_generated_tasks_without_a_seed_repeat():
    assert load_data("gym:chain_sum?size=3").to_list() == load_data("gym:chain_sum?size=3").to_list()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("gym:chain_sun", "chain_sum"),
        ("gym:chain_sum?min_term=2", "min_terms"),
        ("gym:chain_sum?min_terms=3&max_terms=2", "cannot be generated"),
    ],
)
def test_generated_tasks_name_what_is_wrong(source, says):
    with pytest.raises(BoneError, match=says):
        load_data(source)


def test_an_unknown_name_is_one_sentence():
    with pytest.raises(BoneError, match=r"owner/no-such-set.*jsonl") as error:
        load_data("owner/no-such-set?split=train")
    assert "\n" not in str(error.value)


def test_held_out_rows_leave_the_training_rows():
    train = load_data("gym:chain_sum?min_terms=2&max_terms=2&max_digits=1&size=200&seed=1", tokenizer=CHATTY)
    held_out = load_data("gym:chain_sum?min_terms=2&max_terms=2&max_digits=1&size=20&seed=2", tokenizer=CHATTY)
    prompts = {row["prompt"][0]["content"] for row in held_out}
    assert any(row["prompt"][0]["content"] in prompts for row in train)
    kept = without(train, held_out)
    assert not any(row["prompt"][0]["content"] in prompts for row in kept)
    assert len(kept) == sum(row["prompt"][0]["content"] not in prompts for row in train)


def test_held_out_documents_are_known_by_their_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{word}"}}\n' for word in ("one", "two", "three")))
    for end in (None, "<end>"):
        train = load_data(str(path), tokenizer=SimpleNamespace(chat_template=None, eos_token=end))
        kept = without(train, train.select([1]), document_start(SimpleNamespace(eos_token=end)))
        assert kept["completion"] == ["one", "three"]


def test_template_around_prompt_and_answer(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1 + 1 =", "completion": "2"}\n')
    plain = SimpleNamespace(chat_template=None)
    assert load_data(str(path), tokenizer=plain, template="Sum: {prompt}")[0] == {
        "prompt": "Sum: 1 + 1 =",
        "completion": "2",
    }
    assert load_data(str(path), tokenizer=plain, template="{prompt} {completion}.")[0] == {
        "prompt": "1 + 1 =",
        "completion": " 2.",
    }
