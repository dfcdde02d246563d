"""Tables of pairs of answers, as people have them."""

import json
from types import SimpleNamespace

import pytest

from bone_peft.errors import BoneError
from bone_peft.runs.data import load_data, split, without

CHATTY = SimpleNamespace(chat_template="{{ messages }}")
PLAIN = SimpleNamespace(chat_template=None)
ASKED, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "?"), ("assistant", "y"), ("assistant", "n"))
)
CHAT = {"prompt": [ASKED], "chosen": [YES], "rejected": [NO]}
TEXT = {"prompt": "?", "chosen": "y", "rejected": "n"}


def load(path, *rows, tokenizer=CHATTY, **how):
    file = path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_data(str(file), tokenizer=tokenizer, pairs=True, **how)


@pytest.mark.parametrize(
    "row",
    [
        CHAT,
        TEXT,
        {"prompt": [ASKED], "chosen": YES, "rejected": NO},
        {"chosen": [ASKED, YES], "rejected": [ASKED, NO]},
        {"prompt": "?", "chosen": [ASKED, YES], "rejected": [ASKED, NO], "score_chosen": 1.0},
        {"prompt": [ASKED], "chosen": "y", "rejected": "n"},
        {"messages": [ASKED], "chosen": YES, "rejected": NO},
        {
            "conversations": [{"from": "human", "value": "?"}],
            "chosen": {"from": "gpt", "value": "y"},
            "rejected": {"from": "gpt", "value": "n"},
        },
    ],
    ids=["trl", "text", "one message", "whole chats", "prompt and chats", "mixed", "messages", "share_gpt"],
)
def test_a_pair_on_a_base_with_chat(row, tmp_path):
    rows = load(tmp_path, row)
    assert rows.column_names == ["prompt", "chosen", "rejected"]
    assert rows[0] == CHAT


def test_longer_chats_keep_all_before_the_last_answer_with_system_and_tools(tmp_path):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    talk = [ASKED, NO, ASKED]
    rows = load(tmp_path, {"system": "s", "chosen": [*talk, YES], "rejected": [*talk, NO], "tools": tools})
    assert rows[0] == {
        "prompt": [{"role": "system", "content": "s"}, *talk],
        "chosen": [YES],
        "rejected": [NO],
        "tools": tools,
    }


def test_text_on_a_base_without_chat(tmp_path):
    assert load(tmp_path, TEXT, tokenizer=PLAIN)[0] == TEXT
    assert load(tmp_path, TEXT, tokenizer=PLAIN, template="Q: {prompt}\nA: {completion}")[0] == {
        "prompt": "Q: ?\nA:",
        "chosen": " y",
        "rejected": " n",
    }
    whole = {"chosen": "Q: ? A: y", "rejected": "Q: ? A: n"}
    assert load(tmp_path, whole, chat=False)[0] == {"prompt": "Q: ? A:", "chosen": " y", "rejected": " n"}


@pytest.mark.parametrize(
    ("row", "how", "sentence"),
    [
        ({"prompt": "?", "completion": "y"}, {}, "holds no pairs of a chosen and a rejected answer.* no column chosen"),
        ({"prompt": "?", "chosen": "y"}, {}, "no column rejected, it has prompt, chosen"),
        ({"chosen": "y", "rejected": "n"}, {}, "without a column prompt: pass --no-chat"),
        (
            {"chosen": "y", "rejected": "n"},
            {"chat": False},
            "Row 1 .* begin differently, and there is no column prompt",
        ),
        ({"prompt": "?", "chosen": "", "rejected": "n"}, {"chat": False}, "Row 1 .* 'chosen' must hold text"),
        ({"prompt": "?", "chosen": None, "rejected": "n"}, {}, "Row 1 .* must be text or messages, found None"),
        ({"chosen": [ASKED, YES], "rejected": [YES, ASKED, NO]}, {}, "Row 1 .* other messages before it"),
        ({"prompt": "!", "chosen": [ASKED, YES], "rejected": [ASKED, NO]}, {}, "what 'prompt' says is not in it"),
        ({"chosen": [ASKED], "rejected": [ASKED, NO]}, {}, "Row 1 .* with an answer"),
        (CHAT, {"chat": False}, "need a base with a chat template"),
        (TEXT, {"template": "{prompt}"}, "template is for a prompt and an answer"),
        (TEXT, {"fields": ["prompt", "chosen"]}, "leave it out"),
    ],
)
def test_what_is_no_pair_is_one_sentence(row, how, sentence, tmp_path):
    with pytest.raises(BoneError, match=sentence):
        load(tmp_path, row, **how)


def test_one_of_two_answers_is_learned_by_its_column(tmp_path):
    load(tmp_path, TEXT)
    rows = load_data(str(tmp_path / "pairs.jsonl"), tokenizer=PLAIN, fields=["prompt", "chosen"])
    assert rows[0] == {"prompt": "?", "completion": "y"}


def test_held_out_pairs_are_known_by_their_prompt(tmp_path):
    rows = load(tmp_path, *({**TEXT, "prompt": str(i % 30)} for i in range(60)), tokenizer=PLAIN)
    kept, held_out = split(rows, seed=0)
    assert len(kept) + len(held_out) == 60 and not {*kept["prompt"]} & {*held_out["prompt"]}
    assert without(rows, held_out)["prompt"] == kept["prompt"]
