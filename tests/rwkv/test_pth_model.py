import os
import pickle
import zipfile

import pytest
import torch

from bone_peft.errors import BoneError
from bone_peft.files.bases import load_adapter, load_base
from bone_peft.rwkv.pth_model import load_model, save_model

from .conftest import small_model


def test_a_file_comes_back_as_it_was(base, tmp_path):
    model = load_model(base)
    again = tmp_path / "again.pth"
    save_model(model, again)
    stored, written = (torch.load(path, weights_only=True) for path in (base, again))
    assert list(stored) == list(written)
    assert all(torch.equal(stored[name], written[name]) for name in stored)


def test_vectors_and_low_rank_pairs_lie_as_rwkv_stores_them(base):
    stored = torch.load(base, weights_only=True)
    assert stored["blocks.0.att.x_r"].shape == stored["blocks.1.att.w0"].shape == (1, 1, 128)
    assert stored["blocks.0.ffn.x_k"].shape == (1, 1, 128)
    assert stored["blocks.0.att.w1"].shape == (128, 16) and stored["blocks.0.att.w2"].shape == (16, 128)
    assert stored["blocks.0.att.r_k"].shape == (2, 64)


def test_dtype_is_the_file_s_or_the_one_asked_for(base, tmp_path):
    half = tmp_path / "half.pth"
    save_model(small_model(), half, dtype=torch.bfloat16)
    assert load_model(half).dtype == torch.bfloat16
    assert load_model(half, dtype=torch.float32).dtype == torch.float32
    assert load_model(base).dtype == torch.float32


def test_unused_tensors_of_the_first_layer_are_passed_by(base, tmp_path, ids):
    stored = torch.load(base, weights_only=True)
    for name in ("v0", "v1", "v2"):
        stored[f"blocks.0.att.{name}"] = torch.randn_like(stored[f"blocks.1.att.{name}"])
    torch.save(stored, tmp_path / "official.pth")
    assert torch.equal(load_model(tmp_path / "official.pth")(ids).logits, load_model(base)(ids).logits)


def changed(base, tmp_path, **changes) -> str:
    stored = torch.load(base, weights_only=True) | changes
    path = tmp_path / "changed.pth"
    torch.save({name: tensor for name, tensor in stored.items() if tensor is not None}, path)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blocks.1.ln2.bias": None}, "lacks blocks.1.ln2.bias"),
        ({"blocks.1.att.key.weight": None}, "no whole RWKV-7"),
        ({"blocks.1.att.odd": torch.ones(3)}, "unknown blocks.1.att.odd"),
        ({"blocks.1.att.w1": torch.ones(128, 7)}, "blocks.1.att.w1 in the shape"),
        ({"blocks.0.att.r_k": None, "blocks.0.att.time_faaaa": torch.ones(2, 64)}, "is x052.*merged and converted"),
        ({"blocks.0.att.r_k": None}, "no RWKV that we know"),
        ({"emb.weight": None}, "no whole RWKV-7"),
    ],
)
def test_what_is_no_whole_rwkv7_is_refused_in_a_sentence(base, tmp_path, changes, sentence):
    with pytest.raises(BoneError, match=sentence):
        load_base(changed(base, tmp_path, **changes))


def test_a_missing_file_is_named():
    with pytest.raises(BoneError, match=r"no base model at 'nowhere\.pth'"):
        load_base("nowhere.pth")


class Hostile:
    def __init__(self, witness) -> None:
        self.witness = str(witness)

    def __reduce__(self):
        return os.mkdir, (self.witness,)


def test_a_hostile_file_runs_nothing(base, tmp_path):
    witness = tmp_path / "witness"
    old, zipped = tmp_path / "old.pth", tmp_path / "zipped.pth"
    old.write_bytes(pickle.dumps({"emb.weight": Hostile(witness)}))
    torch.save({"emb.weight": Hostile(witness)}, zipped)
    assert zipfile.is_zipfile(zipped)
    model, _ = load_base(str(base))
    for path in (old, zipped):
        with pytest.raises(BoneError):
            load_base(str(path))
        with pytest.raises(BoneError):
            load_adapter(model, path)
    assert not witness.exists()
    pickle.loads(old.read_bytes())
    assert witness.exists(), "the file does nothing, so that the test proves nothing"
