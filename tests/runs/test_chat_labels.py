"""What is learned of a chat: its answers with the tokens that end them, wherever the template puts them."""

import json

import pytest
from transformers import AutoTokenizer

from bone_peft.runs.training import Recipe, train
from bone_peft.runs.training.chat_labels import labeled

from .tiny import make_base

PLAIN = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
TEMPLATES = {
    "plain": PLAIN,
    # The whole ends with one more token.
    "ended": PLAIN.replace("{% if add_gen", "{% if not add_generation_prompt %}<pad>{% endif %}{% if add_gen"),
    # Answers are marked, without what ends them.
    "marked": PLAIN.replace(
        "{{ m['content'] }}",
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}"
        "{{ m['content'] }}{% endif %}",
    ),
    # Thoughts (before the bar) of older answers are taken out.
    "thoughts": PLAIN.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'].split('|')[-1] }}"),
}
CHAT = [("system", "s"), ("user", "ab"), ("assistant", "cd"), ("user", "ef"), ("assistant", "g|h")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_base(tmp_path_factory.mktemp("base"), chat=True))


def row_of(chat) -> dict:
    messages = [{"role": role, "content": content} for role, content in chat]
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def learned(tokenizer, template, chat, train_on="all") -> tuple[str, list[str], int]:
    """The whole text, the runs of text that are learned, and how many answers are skipped."""
    tokenizer.chat_template = TEMPLATES[template]
    found = labeled(row_of(chat), tokenizer, train_on)
    assert len(found["input_ids"]) == len(found["labels"])
    runs, last = [], None
    for place, (token, label) in enumerate(zip(found["input_ids"], found["labels"], strict=True)):
        if label == -100:
            continue
        assert label == token
        runs = (
            [*runs[:-1], runs[-1] + tokenizer.decode(token)] if last == place - 1 else [*runs, tokenizer.decode(token)]
        )
        last = place
    return tokenizer.decode(found["input_ids"]).replace(" ", ""), runs, found["skipped"]


@pytest.mark.parametrize(
    ("template", "all_of_them", "last", "skipped"),
    [
        ("plain", ["cd</s>", "g|h</s>"], ["g|h</s>"], 0),
        ("ended", ["cd</s>", "g|h</s><pad>"], ["g|h</s><pad>"], 0),
        ("marked", ["cd", "g|h"], ["g|h</s>"], 0),
        ("thoughts", ["cd</s>", "g|h</s>"], ["g|h</s>"], 0),
    ],
)
def test_answers(tokenizer, template, all_of_them, last, skipped):
    whole, runs, missed = learned(tokenizer, template, CHAT)
    assert whole.startswith("<s>s</s><u>ab</s><a>cd</s><u>ef</s><a>g|h</s>")
    assert (runs, missed) == (all_of_them, skipped)
    assert learned(tokenizer, template, CHAT, "last")[1] == last


def test_an_answer_that_is_written_otherwise_later_is_skipped(tokenizer):
    chat = [("user", "a"), ("assistant", "x|b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "y|f")]
    whole, runs, skipped = learned(tokenizer, "thoughts", chat)
    assert whole.startswith("<u>a</s><a>b</s>") and runs == ["d</s>", "y|f</s>"] and skipped == 1


def test_an_answer_without_weight_is_not_learned(tokenizer):
    """As OpenAI has it; of a template that marks answers too."""
    for template in ("plain", "marked"):
        tokenizer.chat_template = TEMPLATES[template]
        for place, expected in ((2, "g|h</s>"), (4, "cd</s>")):
            row = row_of(CHAT)
            messages = [*row["prompt"], *row["completion"]]
            messages[place] = messages[place] | {"weight": 0}
            labels = labeled({"prompt": messages[:-1], "completion": messages[-1:]}, tokenizer, "all")["labels"]
            text = tokenizer.decode([token for token in labels if token != -100]).replace(" ", "")
            assert text == expected


def test_an_answer_to_nothing_is_not_learned(tokenizer):
    chat = [("assistant", "hi"), ("user", "a"), ("assistant", "b")]
    assert learned(tokenizer, "plain", chat)[1:] == (["b</s>"], 0)


def test_tools_and_their_calls_go_through_the_template(tokenizer):
    tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t['name'] }};{% endfor %}{% for m in messages %}<{{ m['role'][0] }}>"
        "{% if m['tool_calls'] %}{{ m['tool_calls'][0]['arguments'] | tojson }}{% endif %}"
        "{{ m['content'] or '' }}</s>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"n": 3}}]}
    answer = [{"role": "assistant", "content": "c"}]
    row = {"prompt": [{"role": "user", "content": "a"}, call, {"role": "tool", "content": "b"}], "completion": answer}
    found = labeled(row | {"tools": [{"name": "f"}]}, tokenizer, "all")
    assert tokenizer.decode(found["input_ids"]).replace(" ", "").startswith("f;<u>a")
    text = tokenizer.decode([token for token in found["labels"] if token != -100]).replace(" ", "")
    assert text == '{"n":3}</s>c</s>'


@pytest.mark.parametrize(
    ("train_on", "settings", "count"), [("all", {}, 4), ("last", {}, 2), ("all", {"completion_only_loss": False}, None)]
)
def test_a_run(tmp_path, monkeypatch, train_on, settings, count):
    """How many tokens the loss is over, as the Trainer counts them."""
    base = make_base(tmp_path / "base", chat=True)
    rows = tmp_path / "rows.jsonl"
    chat = [("user", "ab"), ("assistant", "c"), ("user", "d"), ("assistant", "e")]
    rows.write_text(json.dumps({"messages": [{"role": r, "content": c} for r, c in chat]}) + "\n")
    seen = []
    from bone_peft.runs.training.trainer import RunTrainer

    step = RunTrainer.training_step

    def training_step(self, model, inputs, num_items_in_batch=None):
        seen.append(int(num_items_in_batch))
        return step(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(RunTrainer, "training_step", training_step)
    given = {"max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 1, **settings}
    recipe = Recipe(base=str(base), data=str(rows), out=str(tmp_path / "run"), dtype="float32", train_on=train_on)
    recipe.training = given
    train(recipe)
    whole = len(
        AutoTokenizer.from_pretrained(base).apply_chat_template(json.loads(rows.read_text())["messages"])["input_ids"]
    )
    assert seen == [whole - 1 if count is None else count]
