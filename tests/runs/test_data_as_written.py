"""Files as they are: their text, their names, and one sentence with the line for what cannot be read."""

import json

import pytest
from datasets import Dataset

from bone_peft.errors import BoneError
from bone_peft.runs.data import json_rows, load_data

GOOD = '{"prompt": "a", "completion": "b"}\n'


def completions(path, text, **options):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_data(str(path), **options)["completion"][:]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_numbers_and_text_stay_as_they_are_written(name, tmp_path):
    written = ['"007"', "7", '"1e3"', "1e3", "1.50", "-0", "12345678901234567890123", '" 5 "', '"1.0"', "1E400"]
    rows = [f'{{"prompt": "a", "completion": {value}}}' for value in written]
    text = "\n".join(rows) if name == "x.jsonl" else "[" + ",\n".join(rows) + "]"
    assert completions(tmp_path / name, text) == [value.strip('"') for value in written]


def test_what_other_fields_hold_is_left_alone(tmp_path):
    text = '{"prompt": "a", "completion": 1, "score": NaN, "tags": []}\n{"prompt": "c", "completion": "x"}\n'
    assert completions(tmp_path / "x.jsonl", text) == ["1", "x"]


@pytest.mark.parametrize("name", ["a[1].jsonl", "a*.jsonl", "a?.jsonl", "{prompt}.jsonl", "[].json", "a[1].parquet"])
def test_a_file_of_that_name_is_no_pattern(name, tmp_path):
    for other in ("a1", "aa", "ab"):
        (tmp_path / f"{other}.jsonl").write_text(GOOD * 9)
    if name.endswith("parquet"):
        Dataset.from_list([json.loads(GOOD)]).to_parquet(str(tmp_path / name))
    else:
        (tmp_path / name).write_text(GOOD)
    assert len(load_data(str(tmp_path / name))) == 1


def test_several_sources_follow_each_other(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.jsonl").write_text(GOOD.replace('"b"', f'"{name}"'))
    (tmp_path / "d.json").write_text(f"[{GOOD}]")
    several = [str(tmp_path / "c.jsonl"), str(tmp_path / "d.json"), str(tmp_path / "c.jsonl")]
    assert load_data(several)["completion"][:] == ["c", "b", "c"]
    assert load_data(str(tmp_path / "*.jsonl"))["completion"][:] == ["a", "b", "c"]
    with pytest.raises(BoneError, match=r"none matches"):
        load_data(str(tmp_path / "no*.jsonl"))
    (tmp_path / "text.jsonl").write_text('{"text": "a document"}\n')

    class Chatty:
        chat_template = "{{ messages }}"

    with pytest.raises(BoneError, match=r"c\.jsonl and .*text\.jsonl .* one kind"):
        load_data([several[0], str(tmp_path / "text.jsonl")], tokenizer=Chatty())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.encode() + '{"prompt": "é"}'.encode("latin-1"), r"line 2: .*not UTF-8 \(0xe9\).*iconv"),
        (GOOD.encode("utf-16"), "UTF-16.*iconv"),
        (GOOD.encode("utf-16-le"), "UTF-16.*iconv"),
        (GOOD.encode("utf-32"), "UTF-16.*iconv"),
        (b"[" + GOOD.encode() + b",\n\n\xff]", "line 4: .*not UTF-8"),
        (GOOD * 2 + '{"prompt": 1,}\n', "line 3 is not JSON"),
        (GOOD + '{"prompt": "a\tb"}\n', "line 2 is not JSON .*control character"),
        (GOOD.strip() + GOOD, "line 1 is not JSON .*column 35"),
        ("[" + GOOD + "," + GOOD, "line 3 is not JSON .*end of the list"),
        ("[" + GOOD + GOOD + "]", "line 2 is not JSON .*comma"),
        ("[\n\n" + GOOD + ',\n{"prompt": \n\n?}]', "line 7 is not JSON"),
        ("[" + GOOD + "]\n[]", "line 2 is not JSON .*follows the list"),
        ("[" + GOOD + ",]", "line 2 is not JSON"),
        ("[,]", "line 1 is not JSON"),
        ("[" + GOOD + ", 5]", "line 2 holds no object"),
        (GOOD + "5\n", "line 2 holds no object"),
        (GOOD + '{"a": ' * 100_000, "line 2 is not JSON .*nested too deeply"),
        ("[" * 100_000, "line 1 is not JSON .*nested too deeply"),
        (GOOD + '{"a": ' + "[" * 100_000, "line 2 is not JSON .*nested too deeply"),
        (GOOD + '{"prompt": "\\ud83d", "completion": "b"}', "line 2 is not JSON .*surrogate"),
        (GOOD + '\n{"prompt": ["a"], "completion": "b"}', "'prompt' holds text on line 1 and a list on line 3"),
        ('{"messages": ["hello", "world"]}', "Row 1 .*messages must"),
        ('{"messages": "hello"}', "Row 1 .*messages must"),
        ('{"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}', "Row 1 .*messages must"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}', "Row 1 .*messages must"),
        ('{"prompt": "a", "completion": true}', "Row 1 .*found True"),
        ('{"prompt": "a", "completion": NaN}', "Row 1 .*'completion' must hold text"),
        ('{"prompt": "a", "completion": ["%s"]}' % ("b" * 10_000), "Row 1 .*must hold text"),
        ("   \n\n  ", "no rows"),
        ("[ ]", "no rows"),
        ("{}\n", "no rows"),
    ],
)
def test_one_sentence_says_what_is_wrong_and_where(text, says, tmp_path):
    class Chatty:
        chat_template = "{{ messages }}"

    path = tmp_path / "x.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BoneError, match=says) as error:
        load_data(str(path), tokenizer=Chatty() if "messages" in str(text) else None)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_mark_of_the_byte_order_is_no_text(tmp_path):
    for text in (GOOD, "[" + GOOD + "]"):
        assert completions(tmp_path / "x.jsonl", b"\xef\xbb\xbf" + text.encode()) == ["b"]


def test_rows_are_of_bounded_length(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1000)
    long = json.dumps({"prompt": "a", "completion": "b" * 1000})
    for text in (GOOD + long, f"[{GOOD},{long}]"):
        with pytest.raises(BoneError, match=r"line 2: a row of more than"):
            completions(tmp_path / "x.jsonl", text)


def test_numbers_of_parquet_that_are_none_are_refused(tmp_path):
    Dataset.from_dict({"prompt": ["a", "b"], "completion": [1.5, float("nan")]}).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(BoneError, match=r"Row 2 .*found nan"):
        load_data(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("options", "text", "says"),
    [
        ({"template": "{prompt}!"}, '{"text": "a"}', "whole documents .*leave it out"),
        ({"fields": ("prompt", "prompt2")}, GOOD, "no field 'prompt2'"),
    ],
)
def test_no_option_is_passed_over(options, text, says, tmp_path):
    with pytest.raises(BoneError, match=says):
        completions(tmp_path / "x.jsonl", text, **options)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("gym:chain_sum?size=[", "size in chain_sum is not YAML"),
        ("gym:chain_sum?size=many", "cannot be generated"),
        ("owner/name?split=[", "split in owner/name is not YAML"),
    ],
)
def test_options_of_a_source(source, says):
    with pytest.raises(BoneError, match=says) as error:
        load_data(source)
    assert "\n" not in str(error.value)
