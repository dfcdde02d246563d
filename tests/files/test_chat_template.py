"""Chat templates of strangers, in the commands that render them."""

import pytest
from transformers import AutoTokenizer

from bone_peft import BoneError
from bone_peft.files.bases import chat_template, check_chat_template

from ..cli.test_commands import bone
from ..runs.tiny import CHAT, make_base, sums, write_rows

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("bases") / "base", chat=True)


def with_template(base, template):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [
        LOOP,
        "{{ 'x' * 10**10 }}",
        "{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}",
        "{% if messages[-1].role == 'assistant' %}" + LOOP + "{% endif %}",
        "{% generation %}" + LOOP + "{% endgeneration %}",
    ],
)
def test_without_end_or_measure(base, monkeypatch, template):
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    with pytest.raises(BoneError, match=f"{base}.* end, or writes without measure"):
        check_chat_template(with_template(base, template))


@pytest.mark.parametrize(
    "template", ["{% if", "{{ raise_exception('no\nway') }}", "{{ messages.a.b }}", "{{" + "(" * 50_000]
)
def test_faults(base, template):
    with pytest.raises(BoneError, match="faulty") as caught:
        check_chat_template(with_template(base, template))
    assert "\n" not in str(caught.value)


def test_sound_ones(base):
    check_chat_template(with_template(base, CHAT))
    check_chat_template(with_template(base, None))


@pytest.mark.parametrize("template", [LOOP, "{% if"])
def test_commands(tmp_path, monkeypatch, template):
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    base = make_base(tmp_path / "base", chat=True)
    with_template(base, template).save_pretrained(base)
    data = ["--data", write_rows(tmp_path / "rows.jsonl", sums(3)), "--fields", "query", "response"]
    train = ["train", "--base", base, *data, "--steps", 1, "--r", 8, "--set", "adapter.target_modules=[q_proj]"]
    for words in (
        ["generate", "--base", base, "a"],
        ["eval", "--base", base, *data],
        [*train, "--out", tmp_path / "out"],
    ):
        done = bone(*words)
        assert done.exit_code == 2 and "chat template" in done.stderr, done.output
        assert len(done.stderr.strip().splitlines()) == 1
    plain = bone("generate", "--base", base, "--no-chat", "--max-new-tokens", 1, "a")
    assert plain.exit_code == 0, plain.output
