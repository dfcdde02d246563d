import pytest
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

from bone_peft.errors import BoneError
from bone_peft.rwkv.tokenizer import VOCABULARY, load_tokenizer, world_vocabulary

TEXT = "User: Wie geht's?\n\nAssistant:  Gut — 好的!\t\x00 e\u0301 🙂\r\n  x = [1,  2]"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return load_tokenizer(tmp_path_factory.mktemp("world") / "model.pth", 65536)


def test_world_tokens_are_those_of_the_rwkv_package(world):
    theirs = TRIE_TOKENIZER(str(world_vocabulary()))
    ids = world(TEXT)["input_ids"]
    assert ids == theirs.encode(TEXT)
    assert world.decode(ids) == TEXT


def test_token_zero_ends_and_pads(world):
    assert world.eos_token_id == world.pad_token_id == 0
    assert world("a" + world.eos_token)["input_ids"][-1] == 0


def test_chat_is_written_as_world_models_know_it(world):
    messages = [
        {"role": "user", "content": " Hi\n"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    text = world.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "User: Hi\n\nAssistant: Hello\n\nUser: Bye\n\nAssistant:"
    ended = world.apply_chat_template(messages[:2], tokenize=False)
    assert ended == "User: Hi\n\nAssistant: Hello" + world.eos_token


def test_the_vocabulary_beside_the_checkpoint_is_taken(base):
    tokenizer = load_tokenizer(base, 512)
    ids = tokenizer(TEXT)["input_ids"]
    assert max(ids) < 512 and tokenizer.decode(ids) == TEXT


def test_a_vocabulary_too_large_for_the_model_is_refused(tmp_path):
    with pytest.raises(BoneError, match=r"512 rows.*put its own"):
        load_tokenizer(tmp_path / "model.pth", 512)


def test_a_damaged_vocabulary_is_refused(tmp_path):
    (tmp_path / VOCABULARY).write_text("1 __import__('os') 1\n", encoding="utf-8")
    with pytest.raises(BoneError, match="no vocabulary of RWKV"):
        load_tokenizer(tmp_path / "model.pth", 512)
