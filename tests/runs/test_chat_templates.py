"""A base without a chat template learns chats by one that it is given, and all that loads the adapter speaks so too."""

import json
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from bone_peft.errors import BoneError
from bone_peft.files.bases import load_adapter, load_base, set_template
from bone_peft.files.bases.given_template import SHIPPED
from bone_peft.files.merging import merge
from bone_peft.runs.data import load_data
from bone_peft.runs.evaluation import evaluate, stream_answer, subjects_of
from bone_peft.runs.evaluation.tokens import encode
from bone_peft.runs.training import train

from .test_train import recipe

TALK = [
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
]
WRITTEN = {
    "chatml": "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n2{end}\n"
    "<|im_start|>user\n2+2<|im_end|>\n<|im_start|>assistant\n4{end}\n",
    "llama3": "{start}<|start_header_id|>system<|end_header_id|>\n\nCount.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n1+1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n2{end}"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n4{end}",
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("chats") / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": TALK}) + "\n" for _ in range(8)))
    return str(path)


def plan(base, chats, out, **values):
    return recipe(base, chats, out, fields=None, **values)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_they_write(plain_base, name):
    tokenizer = AutoTokenizer.from_pretrained(plain_base)
    set_template(tokenizer, name)
    ends = {"start": tokenizer.bos_token or "", "end": tokenizer.eos_token}
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == WRITTEN[name].format(**ends)
    asked = tokenizer.apply_chat_template(TALK[:-1], tokenize=False, add_generation_prompt=True)
    assert WRITTEN[name].format(**ends).startswith(asked)
    row = {"prompt": TALK[:-1], "completion": TALK[-1:]}
    assert tokenizer.eos_token_id in encode(row, tokenizer)[1], "the end is learned"


@pytest.mark.parametrize("name", ["chatml", "own.jinja"])
def test_training_answers_scores_and_a_merged_model_all_know_it(plain_base, chats, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    with pytest.raises(BoneError, match="chat template"):
        train(plan(plain_base, chats, tmp_path / "without"))
    train(plan(plain_base, chats, tmp_path / "run", chat_template=name))
    tokenizer = AutoTokenizer.from_pretrained(plain_base)
    set_template(tokenizer, name)
    rows = load_data(chats, tokenizer=tokenizer)

    model, own = load_base(plain_base, dtype="float32")
    assert not own.chat_template
    expected = stream_answer(
        load_adapter(model, tmp_path / "run" / "adapter"), tokenizer, rows[0]["prompt"], max_new_tokens=5, echo=False
    )
    subjects = subjects_of(plain_base, str(tmp_path / "run"), None)
    scores = evaluate(subjects, lambda given: load_data(chats, tokenizer=given), dtype="float32", max_new_tokens=5)
    assert scores["adapter"].samples[0]["answer"] == expected
    assert scores["base"].tokens == scores["adapter"].tokens

    merge(plain_base, tmp_path / "run", tmp_path / "merged")
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.apply_chat_template(TALK, tokenize=False) == tokenizer.apply_chat_template(TALK, tokenize=False)
    # On from the adapter, without being told again.
    more = plan(plain_base, chats, tmp_path / "more", continue_from=str(tmp_path / "run"))
    train(replace(more, adapter={}))


def test_a_merged_model_keeps_its_own_file_where_nothing_is_new(chat_base, rows_file, tmp_path):
    train(recipe(chat_base, rows_file, tmp_path / "run"))
    merge(chat_base, tmp_path / "run", tmp_path / "merged")
    base, merged = (AutoTokenizer.from_pretrained(place).chat_template for place in (chat_base, tmp_path / "merged"))
    assert base == merged


def test_what_is_none_is_said(plain_base, chats, tmp_path):
    with pytest.raises(BoneError, match="'chat-ml' is neither chatml nor llama3, nor a file"):
        train(plan(plain_base, chats, tmp_path / "run", chat_template="chat-ml"))
    tokenizer = AutoTokenizer.from_pretrained(plain_base)
    tokenizer.eos_token = None
    with pytest.raises(BoneError, match="no end of text"):
        set_template(tokenizer, "chatml")
