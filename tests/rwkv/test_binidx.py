"""RWKV's binidx data: what ``bone data`` writes is read by RWKV-PEFT's rules, and trained on as text is."""

import json
import struct

import numpy as np
import pytest
import torch

from bone_peft.errors import BoneError
from bone_peft.runs.data import load_data
from bone_peft.runs.data.to_binidx import to_binidx
from bone_peft.runs.training import Recipe, train
from bone_peft.rwkv.binidx_file import read_binidx, words_of, write_binidx
from bone_peft.rwkv.tokenizer import VOCABULARY, load_tokenizer, world_vocabulary

from .conftest import ROWS, run

TEXTS = ["User: one\n\nAssistant: two", "Ein Satz, 你好 🙂", "x"]


def as_theirs(prefix):
    """The documents by the offsets of the format alone: header of 34 bytes, sizes, places."""
    index, data = (
        prefix.with_name(prefix.name + ".idx").read_bytes(),
        prefix.with_name(prefix.name + ".bin").read_bytes(),
    )
    assert index[:9] == b"MMIDIDX\x00\x00" and struct.unpack_from("<QB", index, 9) == (1, 8)
    count, boundaries = struct.unpack_from("<QQ", index, 18)
    sizes = struct.unpack_from(f"<{count}i", index, 34)
    places = struct.unpack_from(f"<{count}q", index, 34 + 4 * count)
    assert struct.unpack_from(f"<{boundaries}q", index, 34 + 12 * count) == tuple(range(count + 1))
    return [list(struct.unpack_from(f"<{size}H", data, place)) for size, place in zip(sizes, places, strict=True)]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def test_there_and_back(rows, tmp_path):
    prefix = tmp_path / "data"
    assert "3 documents" in run("data", "to-binidx", rows, "--out", prefix)
    tokenizer = load_tokenizer(tmp_path / "none.pth", 65536)
    expected = [[*tokenizer(text)["input_ids"], 0] for text in TEXTS]
    assert as_theirs(prefix) == expected == [document.tolist() for document in read_binidx(prefix)]
    for name in (prefix, f"{prefix}.bin", f"{prefix}.idx"):
        assert [row["completion"] for row in load_data(str(name), tokenizer=tokenizer)] == TEXTS


def test_what_is_there_is_replaced_if_that_is_asked_for_and_it_is_of_this_kind(rows, tmp_path):
    prefix = tmp_path / "data"
    write_binidx(prefix, [[1]])
    with pytest.raises(BoneError, match=r"data\.idx"):
        write_binidx(prefix, [[2]])
    run("data", "to-binidx", rows, "--out", prefix, "--force")
    assert len(list(read_binidx(prefix))) == 3
    for name, other in (("other.idx", "other"), ("alone.bin", "alone")):
        (tmp_path / name).write_text("mine")
        with pytest.raises(BoneError, match=name):
            write_binidx(tmp_path / other, [[2]], replace=True)
        assert (tmp_path / name).read_text() == "mine"


def test_columns_in_a_template(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": "two", "a": "three"}) + "\n", encoding="utf-8")
    template = "User: {prompt}\n\nAssistant: {completion}"
    run("data", "to-binidx", path, "--out", tmp_path / "data", "--fields", "q", "a", "--template", template)
    assert [row["completion"] for row in load_data(str(tmp_path / "data"))] == ["User: two\n\nAssistant: three"]


@pytest.mark.parametrize(("code", "dtype"), [(4, "<i4"), (5, "<i8"), (3, "<i2")])
def test_other_widths_of_a_token(tmp_path, code, dtype):
    documents = [np.array([5, 300, 0], dtype), np.array([7, 0], dtype)]
    (tmp_path / "data.bin").write_bytes(b"".join(document.tobytes() for document in documents))
    width = np.dtype(dtype).itemsize
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, code, 2, 3)
    body = struct.pack("<2i2q3q", 3, 2, 0, 3 * width, 0, 1, 2)
    (tmp_path / "data.idx").write_bytes(header + body)
    assert [document.tolist() for document in read_binidx(tmp_path / "data")] == [[5, 300, 0], [7, 0]]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda index, data: (index[:-1], data), "no whole index"),
        (lambda index, data: (b"", data), "no whole index"),
        (lambda index, data: (b"X" + index[1:], data), "no whole index"),
        (lambda index, data: (index[:17] + b"\x63" + index[18:], data), "no whole index"),
        (lambda index, data: (index[:18] + b"\xff" * 8 + index[26:], data), "no whole index"),
        (lambda index, data: (index, data[:-2]), "beyond the end"),
        (lambda index, data: (index, b""), "beyond the end"),
        (lambda index, data: (index[:34] + b"\xff" * 4 + index[38:], data), "beyond the end"),
        (lambda index, data: (index, b"\xff\xff" + data[2:]), "no text in the World vocabulary"),
    ],
)
def test_damage_is_one_sentence(tmp_path, damage, sentence):
    write_binidx(tmp_path / "data", [[300, 400], [500]])
    files = [tmp_path / "data.idx", tmp_path / "data.bin"]
    for file, content in zip(files, damage(*(file.read_bytes() for file in files)), strict=True):
        file.write_bytes(content)
    with pytest.raises(BoneError, match=sentence):
        load_data(str(tmp_path / "data"))


def test_another_file_with_an_index_is_not_taken_for_it(rows, tmp_path):
    (tmp_path / "rows.jsonl.idx").write_text("somebody's")
    assert len(load_data(str(rows))) == 3


def test_a_damaged_vocabulary_is_named(tmp_path, rows):
    write_binidx(tmp_path / "data", [[300]])
    (tmp_path / VOCABULARY).write_text("1 'a' 1\n2 'b\n")
    with pytest.raises(BoneError, match="is no vocabulary of RWKV"):
        load_data(str(tmp_path / "data"))
    with pytest.raises(BoneError, match="is no vocabulary of RWKV"):
        to_binidx(str(rows), tmp_path / "other")


def test_a_missing_half_is_named(tmp_path):
    write_binidx(tmp_path / "data", [[300]])
    (tmp_path / "data.bin").unlink()
    with pytest.raises(BoneError, match=r"There is no .*data\.bin"):
        load_data(str(tmp_path / "data"))


def test_words_are_those_of_the_rwkv_package():
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    assert words_of(world_vocabulary()) == TRIE_TOKENIZER(str(world_vocabulary())).idx2token


def test_trains_as_on_the_text(base, tmp_path):
    texts = [f"User: {n}\n\nAssistant: it is {n}" for n in ("one", "two", "three", "four")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / VOCABULARY).write_bytes(base.with_name(VOCABULARY).read_bytes())
    run("data", "to-binidx", tmp_path / "rows.jsonl", "--out", tmp_path / "data")
    assert max(int(document.max()) for document in read_binidx(tmp_path / "data")) < ROWS
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no"}
    losses = []
    for data in ("rows.jsonl", "data"):
        options = {"adapter": {"r": 32}, "training": settings, "dtype": "float32", "chat": False}
        torch.manual_seed(0)
        result = train(Recipe(base=str(base), data=str(tmp_path / data), out=str(tmp_path / f"run-{data}"), **options))
        losses.append([entry["loss"] for entry in result.history if "loss" in entry])
    assert losses[0] == losses[1]
