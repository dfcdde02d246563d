"""``bone chat``: what was said before is known, and base and adapter take turns."""

import pytest

from bone_peft.files.bases import load_adapter, load_base
from bone_peft.runs.evaluation import stream_answer
from bone_peft.runs.training import train

from ..runs.test_train import recipe
from .test_commands import bone

SHORT = {"max_new_tokens": 6, "echo": False}


@pytest.fixture(scope="module")
def adapter(chat_base, rows_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("chat") / "run"
    train(recipe(chat_base, rows_file, out, training__learning_rate=5e-2))
    return out


def told(*lines, options=()):
    done = bone("chat", "--no-bf16", "--max-new-tokens", 6, *options, input="".join(f"{line}\n" for line in lines))
    assert done.exit_code == 0, done.output
    return done.output


def test_what_was_said_is_known_and_both_can_answer(chat_base, adapter):
    said = told(
        "37+1=", "/base", "/again", "and 2+2=", "/clear", "hello", "/quit", "never", options=["--adapter", adapter]
    )
    base, tokenizer = load_base(chat_base, dtype="float32")
    question = {"role": "user", "content": "37+1="}
    plain = stream_answer(base, tokenizer, [question], **SHORT)
    talk = [question, {"role": "assistant", "content": plain}, {"role": "user", "content": "and 2+2="}]
    second = stream_answer(base, tokenizer, talk, **SHORT)
    alone = stream_answer(base, tokenizer, "hello", **SHORT)
    adapted = stream_answer(load_adapter(base, adapter / "adapter"), tokenizer, [question], **SHORT)
    assert adapted != plain
    parts = [part.strip() for part in said.replace("[base] >", "[adapter] >").split("[adapter] >")[1:]]
    assert parts == [adapted, "", plain, second, "", alone, ""]


def test_a_system_message_stands_before_all(chat_base):
    base, tokenizer = load_base(chat_base, dtype="float32")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    answer = stream_answer(base, tokenizer, messages, **SHORT)
    said = told("hello", options=["--base", chat_base, "--system", "Be brief."])
    assert said.split("[base] >")[1].strip() == answer


def test_what_is_no_question_is_said_and_the_talk_goes_on(chat_base):
    said = told("/adapter", "/again", "/help", "", "a" * 100_000, "hello", options=["--base", chat_base])
    for sentence in ("There is no adapter", "Nothing was asked yet", "There is no /help here", "/clear forgets"):
        assert sentence in said
    assert said.count("[base] >") == 7


def test_a_base_that_knows_no_conversations(plain_base):
    done = bone("chat", "--base", plain_base)
    assert done.exit_code == 2 and "no chat template" in " ".join(done.stderr.split())
    assert bone("chat").exit_code == 2
