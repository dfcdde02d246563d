"""Files of strangers: what is refused, and that nothing in them is run."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bone_peft import BoneError
from bone_peft.files.adapters import read_adapter
from bone_peft.io.json_file import read_json
from bone_peft.io.safetensors_file import read_safetensors
from bone_peft.io.torch_file import read_torch


def safetensors(header, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "content,match",
    [
        (b"", "cut short"),
        (b"\x00" * 7, "cut short"),
        (struct.pack("<Q", 2**60) + b"{}", "cut short"),
        (safetensors(b"[1, 2]"), "no JSON object"),
        (safetensors(b"{" * 10), "no valid JSON"),
        (safetensors(b"[" * 100_000), "no valid JSON"),
        (safetensors({"a": entry()}), "declares 8 bytes"),
        (safetensors({"a": entry()}, bytes(9)), "declares 8 bytes"),
        (safetensors({"a": entry(shape=(3,))}, bytes(8)), "not the size"),
        (safetensors({"a": entry(shape=(2**62, 2**62))}, bytes(8)), "not the size"),
        (safetensors({"a": entry(dtype="F99")}, bytes(8)), "a type that is not there"),
        (safetensors({"a": entry(dtype=["F32"])}, bytes(8)), "makes no sense"),
        (safetensors({"a": entry(shape=(-2,))}, bytes(8)), "makes no sense"),
        (safetensors({"a": entry(shape=(True, 2))}, bytes(8)), "makes no sense"),
        (safetensors({"a": entry(offsets=(8, 0))}, bytes(8)), "not the size"),
        (safetensors({"a": entry(offsets=(8, 16))}, bytes(16)), "byte 8"),
        (safetensors({"a": entry(), "b": entry()}, bytes(16)), "byte 0"),
        (safetensors({"a": {"dtype": "F32"}}, bytes(8)), "makes no sense"),
        (safetensors({"__metadata__": {"a": 1}}), "is not text"),
        (safetensors(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)), "twice"),
    ],
)
def test_safetensors_headers(tmp_path, content, match):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(BoneError, match=match):
        read_safetensors(tmp_path / "x.safetensors")


def test_safetensors_as_the_library_reads_them(fixtures):
    for path in fixtures.rglob("*.safetensors"):
        stored, known = read_safetensors(path).tensors, load_file(path)
        assert set(stored) == set(known)
        for name, tensor in known.items():
            assert torch.equal(stored[name].read(), tensor) and stored[name].dtype == tensor.dtype
            if tensor.ndim == 2:
                assert torch.equal(stored[name].read_rows(1, 3), tensor[1:3])


def test_torch_files_as_torch_reads_them(tmp_path, fixtures):
    matrix = torch.randn(6, 8)
    odd = {"t": matrix.T, "part": matrix[2:4], "all": matrix, "none": torch.zeros(0, 3), "one": torch.tensor(3.0)}
    torch.save(odd, tmp_path / "odd.bin")
    for path in (tmp_path / "odd.bin", *fixtures.rglob("*.pth")):
        stored, known = read_torch(path).tensors, torch.load(path, weights_only=True)
        assert list(stored) == list(known)
        for name, tensor in known.items():
            assert torch.equal(stored[name].read(), tensor)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def rezipped(path: Path, change) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            for content in change(name, old.read(name)):
                new.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code(tmp_path, fixtures, protocol):
    evil = pickle.dumps({"a.disha": _Evil(tmp_path / "ran")}, protocol=protocol)
    source = fixtures / "rwkv-peft" / "bone" / "adapter.pth"
    bad = rezipped(source, lambda name, content: [evil if name.endswith("data.pkl") else content])
    (tmp_path / "bad.pth").write_bytes(bad)
    with pytest.raises(BoneError, match="would run"):
        read_adapter(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change,match",
    [
        (lambda name, content: [content[:9]], "damaged|cut short|is no file of torch"),
        (lambda name, content: [content[:-8] if "/data/" in name else content], "more bytes than it holds"),
        (lambda name, content: [] if name.endswith("data.pkl") else [content], "no file of torch.save"),
        (lambda name, content: [content] * (2 if name.endswith("data.pkl") else 1), "no file of torch.save"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damaged_torch_files(tmp_path, fixtures, change, match):
    bad = rezipped(fixtures / "rwkv-peft" / "bone" / "adapter.pth", change)
    (tmp_path / "bad.pth").write_bytes(bad)
    with pytest.raises(BoneError, match=match):
        read_torch(tmp_path / "bad.pth")


def test_json(tmp_path):
    path = tmp_path / "x.json"
    for content, match in (
        ("", "no valid JSON"),
        ("[]", "no JSON object"),
        ('{"a": 1, "a": 2}', "twice"),
        ("[" * 100_000, "no valid JSON"),
        ('"' + "x" * (17 * 2**20) + '"', "no honest file"),
    ):
        path.write_text(content)
        with pytest.raises(BoneError, match=match):
            read_json(path)


def test_adapters(tmp_path, fixtures):
    """Each line: what is done to a sound adapter, and the words that say it."""
    source = fixtures / "peft-0.18.1" / "bone-llama" / "adapter"
    sound = load_file(source / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text())
    first = next(iter(sound))

    def without(name):
        return {key: tensor for key, tensor in sound.items() if key != name}

    for tensors, options, match in (
        (without(first) | {"base_model.model.__class__.bone_block": sound[first]}, {}, "no path in a module tree"),
        (without(first) | {"base_model.model.a..bone_block": sound[first]}, {}, "no path in a module tree"),
        (without(first) | {"model.q.bone_block": sound[first]}, {}, "base_model.model."),
        (sound | {first: torch.zeros(8, 32, dtype=torch.int64)}, {}, "floating point"),
        (sound | {first: torch.zeros(7, 32)}, {}, "its config says 8"),
        (sound | {first: torch.zeros(4, 8, 8)}, {}, "which is not bone"),
        (sound | {first: torch.zeros(8, 0)}, {}, "no elements"),
        (sound | {"base_model.model.extra.weight": torch.zeros(2)}, {}, "does not speak of"),
        ({}, {}, "no tensors of an adapter"),
        (sound, {"r": "eight"}, "whole number"),
        (sound, {"init_weights": "bat"}, "which is not bat"),
        (sound, {"target_modules": 7}, "no name or list of names"),
        (sound, {"rank_pattern": 1.5}, "no table of sizes"),
        (sound, {"peft_type": "PREFIX_TUNING"}, "no adapter that bone knows"),
    ):
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | options))
        with pytest.raises(BoneError, match=match):
            read_adapter(tmp_path)
