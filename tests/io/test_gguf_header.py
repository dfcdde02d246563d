"""Heads of GGUF files that count what is not there."""

import struct
import time

import numpy as np
import pytest
from gguf import GGUFWriter

from bone_peft import BoneError, load_base
from bone_peft.files.checkpoints import open_checkpoint
from bone_peft.io.gguf_header import check_gguf

from ..files.test_ties import write_gguf


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def head(tensors=0, fields=0, rest=b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + rest


def array(kind: int, count: int, rest=b"") -> bytes:
    return head(0, 1, text(b"a") + struct.pack("<IIQ", 9, kind, count) + rest)


def tensor(dimensions, offset=0) -> bytes:
    sizes = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return head(1, 0, text(b"t.weight") + sizes + struct.pack("<IQ", 0, offset))


HOSTILE = {
    "empty": b"",
    "short": b"GGUF",
    "other": b"GGML" + bytes(100),
    "tensors": head(2**31),
    "tensors of a million": head(10**6),
    "fields": head(0, 2**63),
    "a long name": head(0, 1, struct.pack("<Q", 2**62)),
    "a list": array(4, 2**31),
    "a list of strings": array(8, 2**31),
    "a list of four million": array(0, 2**22, bytes(100)),
    "lists of lists": array(9, 2**20, struct.pack("<IQ", 9, 2**20) * 50),
    "a type": array(99, 3),
    "a field of no type": head(0, 1, text(b"a") + struct.pack("<I", 77)),
    "dimensions": head(1, 0, text(b"t") + struct.pack("<I", 2**31)),
    "sizes": tensor([2**31, 2**31]),
    "an offset": tensor([1], 2**60),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_what_is_not_there(tmp_path, data):
    file = tmp_path / "base.gguf"
    file.write_bytes(data)
    start = time.process_time()
    for read in (check_gguf, lambda path: open_checkpoint(str(path)).tensors, lambda path: load_base(str(path))):
        with pytest.raises(BoneError) as caught:
            read(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert time.process_time() - start < 5


def test_an_honest_file(tmp_path):
    write_gguf(tmp_path / "base.gguf")
    assert check_gguf(tmp_path / "base.gguf") == 64 * 32 + 32 + 2 * (32 * 32 * 2 + 16 * 32 * 2 + 3 * 64 * 32 + 64)
    data = (tmp_path / "base.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[:500])
    with pytest.raises(BoneError):
        check_gguf(tmp_path / "cut.gguf")


@pytest.mark.parametrize("field", ["add_embedding_length", "add_feed_forward_length", "add_block_count"])
@pytest.mark.parametrize("size", [2**31, 100_000])
def test_a_model_that_its_tensors_are_not(tmp_path, monkeypatch, field, size):
    honest = getattr(GGUFWriter, field)
    monkeypatch.setattr(GGUFWriter, field, lambda writer, _: honest(writer, size))
    write_gguf(tmp_path / "base.gguf")
    start = time.process_time()
    with pytest.raises(BoneError, match=r"base\.gguf"):
        load_base(str(tmp_path / "base.gguf"))
    assert time.process_time() - start < 10


def test_the_other_byte_order(tmp_path):
    from gguf import GGUFEndian

    writer = GGUFWriter(tmp_path / "big.gguf", "llama", endianess=GGUFEndian.BIG)
    writer.add_block_count(2)
    writer.add_tensor("t.weight", np.zeros((3, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert check_gguf(tmp_path / "big.gguf") == 12
