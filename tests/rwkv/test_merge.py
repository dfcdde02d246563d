"""Merging into ``.pth`` files, against RWKV-PEFT's own merges and against the formulas."""

import pytest
import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.files.adapters import read_adapter, write_adapter
from bone_peft.files.merging import merge

NAMES = ("base", "adapter", "merged")


def load(path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


def merged_weight(weight: Tensor, block: Tensor) -> Tensor:
    """In float64, one block of the weight after the other."""
    new = weight.double().clone()
    if block.ndim == 2:
        r = block.shape[0]
        for column in range(new.shape[1]):
            new[:, column] += block[column % r].double()
        return new
    for i, d in enumerate(block.double()):
        r = len(d)
        for row in range(0, len(new), r):
            part = new[row : row + r, i * r : (i + 1) * r]
            part += part @ d + d
    return new


@pytest.mark.parametrize("mode", ["bone", "bat"])
def test_against_rwkv_peft(fixtures, tmp_path, mode):
    folder = fixtures / "rwkv-peft" / mode
    out = tmp_path / "merged.pth"
    merge(str(folder / "base.pth"), folder / "adapter.pth", out)
    base, adapter, theirs, ours = (load(path) for path in (*(folder / f"{n}.pth" for n in NAMES), out))
    assert list(ours) == list(base) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == base[name].dtype
        block = adapter.get(name.replace(".weight", ".disha"))
        if block is None:
            assert torch.equal(tensor, base[name])
            continue
        # Ours is rounded once. RWKV-PEFT computes in bfloat16: Bone is one addition, Bat is three operations.
        assert torch.equal(tensor, merged_weight(base[name], block).to(tensor.dtype))
        if mode == "bone":
            assert torch.equal(tensor, theirs[name])
        else:
            torch.testing.assert_close(tensor.double(), theirs[name].double(), rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize("mode", ["bone", "bat"])
def test_their_adapter_comes_back_from_a_peft_folder_bit_for_bit(fixtures, tmp_path, mode):
    source = fixtures / "rwkv-peft" / mode / "adapter.pth"
    write_adapter(read_adapter(source)[0], "bone", tmp_path / "folder")
    adapter, format = read_adapter(tmp_path / "folder")
    assert format.name == "bone" and "model.layers.1.attn.r_proj" in adapter.layers
    write_adapter(adapter, "rwkv", tmp_path / "again.pth")
    before, after = load(source), load(tmp_path / "again.pth")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def test_x060_and_old_bone_files(tmp_path):
    base = {
        "emb.weight": torch.randn(16, 8),
        "blocks.0.ln1.weight": torch.randn(8),
        "blocks.0.att.time_maa_x": torch.randn(1, 1, 8),
        "blocks.0.att.gate.weight": torch.randn(8, 8),
        "blocks.0.ffn.receptance.weight": torch.randn(8, 8),
        "head.weight": torch.randn(16, 8),
    }
    adapter = {
        "blocks.0.att.gate.bone": torch.randn(2, 4, 4),
        "blocks.0.ffn.receptance.bone": torch.randn(2, 4, 4),
        "blocks.0.att.time_maa_x": torch.randn(1, 1, 8),
        "blocks.0.ln1.weight": torch.randn(8),
    }
    torch.save(base, tmp_path / "base.pth")
    torch.save(adapter, tmp_path / "adapter.pth")
    merge(str(tmp_path / "base.pth"), tmp_path / "adapter.pth", tmp_path / "merged.pth")
    merged = load(tmp_path / "merged.pth")
    assert list(merged) == list(base)
    for name in ("blocks.0.att.time_maa_x", "blocks.0.ln1.weight"):
        assert torch.equal(merged[name], adapter[name])
    for name in ("blocks.0.att.gate", "blocks.0.ffn.receptance"):
        expected = merged_weight(base[f"{name}.weight"], adapter[f"{name}.bone"])
        torch.testing.assert_close(merged[f"{name}.weight"].double(), expected, rtol=1e-6, atol=1e-6)

    write_adapter(read_adapter(tmp_path / "adapter.pth")[0], "rwkv", tmp_path / "new.pth")
    new = load(tmp_path / "new.pth")
    assert set(new) == {name.replace(".bone", ".disha") for name in adapter}
    assert all(torch.equal(tensor, new[name.replace(".bone", ".disha")]) for name, tensor in adapter.items())


def test_an_adapter_of_another_base_is_refused_and_nothing_is_left(fixtures, tmp_path, base):
    with pytest.raises(BoneError, match="does not fit this base"):
        merge(str(base), fixtures / "rwkv-peft" / "bone" / "adapter.pth", tmp_path / "merged.pth")
    assert not list(tmp_path.iterdir())


def test_a_model_given_as_an_adapter_is_called_one(base):
    with pytest.raises(BoneError, match=r"whole RWKV model \(x070\)"):
        read_adapter(base)
