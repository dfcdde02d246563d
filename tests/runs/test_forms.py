"""Rows as people have them: chats with tools, ShareGPT, Alpaca, tables of separated values."""

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset

from bone_peft.errors import BoneError
from bone_peft.runs.data import load_data, without
from bone_peft.runs.training import Recipe

CHATTY = SimpleNamespace(chat_template="{{ messages }}")
PLAIN = SimpleNamespace(chat_template=None)


def said(**roles) -> list[dict]:
    return [{"role": role, "content": content} for role, content in roles.items()]


def lines(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def called(**arguments) -> dict:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


def test_calls_of_tools_stay_as_they_are_written(tmp_path):
    """Arguments of one row have no part in another's, and numbers are numbers."""
    first = [*said(user="a"), called(days=3, share=1.5), {"role": "tool", "content": "sun"}, *said(assistant="b")]
    second = [*said(user="c"), called(city="Ulm")]
    source = lines(tmp_path / "x.jsonl", {"messages": first, "tools": TOOLS}, {"messages": second, "tools": []})
    rows = load_data(source, tokenizer=CHATTY)
    assert rows[0] == {"prompt": first[:-1], "completion": first[-1:], "tools": TOOLS}
    assert rows[1] == {"prompt": second[:-1], "completion": second[-1:], "tools": []}

    both = load_data([source, lines(tmp_path / "y.jsonl", {"messages": first})], tokenizer=CHATTY)
    assert both["tools"] == [TOOLS, [], None]
    some = lines(tmp_path / "some.jsonl", {"messages": first, "tools": TOOLS}, {"messages": first})
    assert load_data(some, tokenizer=CHATTY)["tools"] == [TOOLS, None]

    as_text = lines(tmp_path / "z.jsonl", {"messages": second, "tools": json.dumps(TOOLS)})
    assert load_data(as_text, tokenizer=CHATTY)["tools"] == [TOOLS]


def test_arguments_of_a_call_in_json_text_are_an_object(tmp_path):
    """So OpenAI writes them, and templates would write that text as text once more."""
    text = called()
    text["tool_calls"][0]["function"]["arguments"] = '{"days": 3}'
    source = lines(tmp_path / "x.jsonl", {"messages": [*said(user="a"), text]})
    assert load_data(source, tokenizer=CHATTY)[0]["completion"] == [called(days=3)]
    text["tool_calls"][0]["function"]["arguments"] = "three days"
    source = lines(tmp_path / "y.jsonl", {"messages": [*said(user=5), text]})
    assert load_data(source, tokenizer=CHATTY)[0] == {"prompt": said(user="5"), "completion": [text]}


def test_a_table_of_one_kind_of_objects(tmp_path):
    """Parquet holds for each object the parts of all; those that are another row's do not come in."""
    first = [*said(user="a"), called(days=3), *said(assistant="b")]
    second = [*said(user="c"), called(city="Ulm")]
    Dataset.from_dict({"messages": [first, second]}).to_parquet(tmp_path / "x.parquet")
    assert Dataset.from_parquet(str(tmp_path / "x.parquet"))[0]["messages"] != first
    found = load_data(str(tmp_path / "x.parquet"), tokenizer=CHATTY)
    assert [message.get("tool_calls") for message in found[0]["prompt"]] == [None, called(days=3)["tool_calls"]]
    assert "tool_calls" not in found[0]["prompt"][0]
    assert found[1]["completion"][0]["tool_calls"] == called(city="Ulm")["tool_calls"]


def test_parts_of_text_are_one_text(tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    source = lines(tmp_path / "x.jsonl", {"messages": [{"role": "user", "content": parts}, *said(assistant="c")]})
    assert load_data(source, tokenizer=CHATTY)[0]["prompt"] == said(user="ab")
    picture = [*parts, {"type": "image_url", "image_url": {"url": "x"}}]
    source = lines(tmp_path / "y.jsonl", {"messages": [{"role": "user", "content": picture}, *said(assistant="c")]})
    with pytest.raises(BoneError, match=r"Row 1 .*content of text"):
        load_data(source, tokenizer=CHATTY)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "User", "content": "a"}, *said(assistant="b")], "role 'User', and messages are of system"),
        ([{"content": "a"}, *said(assistant="b")], "role None"),
        ([*said(user="a"), {"role": "assistant", "content": ""}], "content of text"),
        ([*said(user="a"), {"role": "assistant", "content": None}], "content of text"),
        ([{"role": "user", "content": None}, *said(assistant="b")], "content of text"),
        (said(user="a"), "with an answer"),
        ([{"role": ["user"], "content": "a"}, *said(assistant="b")], "role"),
        ([*said(user="a"), {"role": "assistant", "content": None, "tool_calls": "f"}], "tool_calls must be a list"),
    ],
)
def test_messages_that_are_none(tmp_path, messages, says):
    good = {"messages": [*said(user="a", assistant="b")]}
    with pytest.raises(BoneError, match=f"Row 2 of .*{says}"):
        load_data(lines(tmp_path / "x.jsonl", good, {"messages": messages}), tokenizer=CHATTY)


def test_prompts_and_completions_of_messages(tmp_path):
    row = {"prompt": said(system="s", user="a"), "completion": said(assistant="b")}
    assert load_data(lines(tmp_path / "x.jsonl", row), tokenizer=CHATTY)[0] == row
    with pytest.raises(BoneError, match="need a base with a chat template"):
        load_data(lines(tmp_path / "x.jsonl", row), tokenizer=PLAIN)
    # What is asked may hold answers; they are context, and only what completes it is learned.
    row = {"prompt": said(user="a", assistant="b") + said(user="c"), "completion": said(assistant="d")}
    found = load_data(lines(tmp_path / "y.jsonl", row), tokenizer=CHATTY)[0]["prompt"]
    assert found == [*said(user="a"), said(assistant="b")[0] | {"weight": 0}, *said(user="c")]


def test_share_gpt(tmp_path):
    turns = (("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"), ("human", "e"))
    source = lines(tmp_path / "x.jsonl", {"id": 1, "conversations": [{"from": f, "value": v} for f, v in turns]})
    expected = [*said(system="s", user="a", assistant="b"), *said(user="c", assistant="d")]
    assert load_data(source, tokenizer=CHATTY)[0] == {"prompt": expected[:-1], "completion": expected[-1:]}
    Dataset.from_list([{"conversations": [{"from": f, "value": v} for f, v in turns]}]).to_parquet(
        tmp_path / "x.parquet"
    )
    assert load_data(str(tmp_path / "x.parquet"), tokenizer=CHATTY)[0]["prompt"] == expected[:-1]

    call = [("human", "a"), ("function_call", '{"name": "weather", "arguments": {"days": 3}}'), ("observation", "sun")]
    row = {"conversations": [{"from": f, "value": v} for f, v in (*call, ("gpt", "b"))], "system": "s"}
    found = load_data(lines(tmp_path / "y.jsonl", row), tokenizer=CHATTY)[0]
    made = {name: value for name, value in called(days=3).items() if value is not None}
    assert found["prompt"] == [*said(system="s", user="a"), made, *said(tool="sun")]

    for odd, says in (
        ([{"from": "narrator", "value": "a"}], "role 'narrator'"),
        ([{"from": [1], "value": "a"}], "role"),
        (["a"], "must be a list of a role"),
    ):
        with pytest.raises(BoneError, match=f"Row 1 of .*{says}"):
            load_data(lines(tmp_path / "z.jsonl", {"conversations": odd}), tokenizer=CHATTY)


def test_alpaca(tmp_path):
    row = {"instruction": "Add.", "input": "2 and 3", "output": "5", "text": "all of it"}
    without = {"instruction": "Say hello.", "input": "", "output": "Hello."}
    source = lines(tmp_path / "x.jsonl", row, without)
    assert load_data(source, tokenizer=CHATTY).to_list() == [
        {"prompt": said(user="Add.\n\n2 and 3"), "completion": said(assistant="5")},
        {"prompt": said(user="Say hello."), "completion": said(assistant="Hello.")},
    ]
    assert load_data(source, tokenizer=PLAIN).to_list() == [
        {"prompt": "### Instruction:\nAdd.\n\n### Input:\n2 and 3\n\n### Response:\n", "completion": "5"},
        {"prompt": "### Instruction:\nSay hello.\n\n### Response:\n", "completion": "Hello."},
    ]
    talk = row | {"system": "s", "history": [["a", "b"]]}
    found = load_data(lines(tmp_path / "y.jsonl", talk), tokenizer=CHATTY)[0]["prompt"]
    assert found == [*said(system="s", user="a", assistant="b"), *said(user="Add.\n\n2 and 3")]
    with pytest.raises(BoneError, match="history needs a base with a chat template"):
        load_data(lines(tmp_path / "y.jsonl", talk), tokenizer=PLAIN)
    assert load_data(source, tokenizer=PLAIN, fields=("instruction", "output"))[0]["prompt"] == "Add."


def test_sources_with_weights(tmp_path):
    for name, count in (("a", 4), ("b", 8)):
        rows = [{"prompt": f"{name}{n}", "completion": "x"} for n in range(count)]
        lines(tmp_path / f"{name}.jsonl", *rows)
    given = {str(tmp_path / "a.jsonl"): 2, str(tmp_path / "b*.jsonl"): 0.25}
    prompts = load_data(given)["prompt"][:]
    assert prompts[:8] == ["a0", "a1", "a2", "a3"] * 2
    assert len(set(prompts[8:])) == len(prompts[8:]) == 2 and load_data(given)["prompt"][:] == prompts


@pytest.mark.parametrize("weight", [0, -1, True, "2", float("inf")])
def test_a_weight_that_is_none(weight):
    with pytest.raises(BoneError, match="how often its rows are taken"):
        Recipe().merged({"data": {"x.jsonl": weight}})


def test_separated_values(tmp_path):
    (tmp_path / "x.csv").write_text('\ufeffprompt,completion,note\n007,"a, ""b""\nc",\n', encoding="utf-8")
    (tmp_path / "x.tsv").write_text("prompt\tcompletion\n1.50\tx y\n", encoding="utf-8")
    assert load_data(str(tmp_path / "x.csv"))[0] == {"prompt": "007", "completion": 'a, "b"\nc'}
    assert load_data(str(tmp_path / "x.tsv"))[0] == {"prompt": "1.50", "completion": "x y"}
    assert len(load_data([str(tmp_path / "*.csv"), str(tmp_path / "x.tsv")])) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "no rows"),
        (b",b\na,b\n", "name its columns"),
        (b"prompt,completion\n", "no rows"),
        (b"prompt,completion\na,b\na,b,c\n", "line 3 has 3 values, and there are 2"),
        (b"prompt,prompt\na,b\n", "each otherwise"),
        (b'prompt,completion\na,"b\n', "line 2 is no row"),
        (b"prompt,completion\na,\xe9\n", "not UTF-8"),
        (b"a,b\n1,2\n", "no field 'prompt' or 'completion'; it has a, b"),
    ],
)
def test_separated_values_that_are_none(tmp_path, text, says):
    (tmp_path / "x.csv").write_bytes(text)
    with pytest.raises(BoneError, match=says):
        load_data(str(tmp_path / "x.csv"))


def test_what_stands_beside_a_chat_is_not_lost(tmp_path):
    """A system message and tools, in columns of their own, in every form of chat."""
    question, answer = said(user="q"), said(assistant="a")
    rows = {
        "messages": {"messages": question + answer},
        "parts": {"prompt": question, "completion": answer},
        "text": {"prompt": "q", "completion": "a"},
        "share": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    }
    for name, row in rows.items():
        source = lines(tmp_path / f"{name}.jsonl", {**row, "system": "Be brief.", "tools": TOOLS})
        found = load_data(source, tokenizer=CHATTY)[0]
        assert found == {"prompt": said(system="Be brief.") + question, "completion": answer, "tools": TOOLS}, name
    own = lines(tmp_path / "own.jsonl", {"messages": said(system="Mine.") + question + answer, "system": "Be brief."})
    assert load_data(own, tokenizer=CHATTY)[0]["prompt"] == said(system="Mine.") + question
    named = lines(tmp_path / "named.jsonl", {"q": "q", "a": "a", "system": "linux"})
    assert load_data(named, tokenizer=CHATTY, fields=["q", "a"])[0] == {"prompt": question, "completion": answer}


def test_weights_are_heeded_or_refused(tmp_path):
    talk = [("human", "q", {}), ("gpt", "bad", {"weight": 0}), ("human", "q", {}), ("gpt", "good", {})]
    source = lines(tmp_path / "x.jsonl", {"conversations": [{"from": f, "value": v, **w} for f, v, w in talk]})
    assert [m.get("weight") for m in load_data(source, tokenizer=CHATTY)[0]["prompt"]] == [None, 0, None]
    for weight in ("0", 0.5, -1):
        messages = [*said(user="q"), {"role": "assistant", "content": "a", "weight": weight}]
        with pytest.raises(BoneError, match=r"weight must be 0 \(not learned\) or 1"):
            load_data(lines(tmp_path / "y.jsonl", {"messages": messages}), tokenizer=CHATTY)


@pytest.mark.parametrize("completion", [[], None, said(user="b")])
def test_a_completion_without_an_answer_is_refused(tmp_path, completion):
    good = {"prompt": said(user="q"), "completion": said(assistant="a")}
    bad = {"prompt": said(user="q", assistant="a") + said(user="b"), "completion": completion}
    with pytest.raises(BoneError, match=r"Row 2 .*'completion' must hold an answer"):
        load_data(lines(tmp_path / "x.jsonl", good, bad), tokenizer=CHATTY)


def test_a_held_out_chat_is_known_in_every_form(tmp_path):
    question, answer = said(user="q"), said(assistant="a")
    held_out = load_data(lines(tmp_path / "held.jsonl", {"messages": question + answer}), tokenizer=CHATTY)
    turned = [dict(reversed(message.items())) for message in question + answer]
    for name, row in {
        "turned": {"messages": turned},
        "parts": {"prompt": question, "completion": said(assistant="b")},
        "longer": {"messages": [*question, *answer, *said(user="r", assistant="s")]},
        "weighted": {"prompt": [*question, *answer, *said(user="r")], "completion": said(assistant="s")},
    }.items():
        other = {"messages": said(user="else", assistant="a")}
        other = other if "messages" in row else {"prompt": said(user="else"), "completion": answer}
        rows = load_data(lines(tmp_path / f"{name}.jsonl", row, other), tokenizer=CHATTY)
        assert len(without(rows, held_out)) == 1, name
