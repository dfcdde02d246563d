"""Files of the RWKVs before RWKV-7, with the names and shapes of RWKV-LM: they merge and convert."""

import json

import pytest
import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.files.adapters import read_adapter

from .conftest import run

WIDTH, INNER, ROWS, LAYERS, HEAD, R = 64, 224, 48, 2, 32, 32
MATRICES = [f"att.{name}" for name in ("receptance", "key", "value", "output", "gate")]
MATRICES += [f"ffn.{name}" for name in ("key", "receptance", "value")]
CHANNELS = (1, 1, WIDTH)
HEADS = (WIDTH // HEAD, HEAD)
TIME_MIX = {
    "x060": {
        **{f"time_maa_{name}": CHANNELS for name in "xwkvrg"},
        "time_maa_w1": (WIDTH, 32 * 5),
        "time_maa_w2": (5, 32, WIDTH),
        "time_decay": CHANNELS,
        "time_decay_w1": (WIDTH, 64),
        "time_decay_w2": (64, WIDTH),
        "time_faaaa": HEADS,
    },
    "x052": {**{f"time_mix_{name}": CHANNELS for name in "kvrg"}, "time_decay": HEADS, "time_faaaa": HEADS},
}
CHANNEL_MIX = {"x060": ("time_maa_k", "time_maa_r"), "x052": ("time_mix_k", "time_mix_r")}


def shapes_of(version: str) -> dict[str, tuple[int, ...]]:
    """Of all tensors of a checkpoint."""

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}

    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (ROWS, WIDTH)}
    for n in range(LAYERS):
        block = f"blocks.{n}."
        shapes |= norm(f"{block}ln1") | norm(f"{block}ln2") | (norm(f"{block}ln0") if n == 0 else {})
        shapes |= {f"{block}att.{name}": shape for name, shape in TIME_MIX[version].items()}
        shapes |= {f"{block}{name}.weight": (WIDTH, WIDTH) for name in MATRICES if name.startswith("att")}
        shapes |= norm(f"{block}att.ln_x")
        shapes |= {f"{block}ffn.{name}": CHANNELS for name in CHANNEL_MIX[version]}
        shapes |= {f"{block}ffn.key.weight": (INNER, WIDTH), f"{block}ffn.receptance.weight": (WIDTH, WIDTH)}
        shapes |= {f"{block}ffn.value.weight": (WIDTH, INNER)}
    return shapes | norm("ln_out") | {"head.weight": (ROWS, WIDTH)}


def block_of(mode: str, out_features: int, in_features: int) -> Tensor:
    shape = (R, out_features) if mode == "bone" else (in_features // R, R, R)
    return (0.1 * torch.randn(shape)).bfloat16()


def merged_by_hand(weight: Tensor, block: Tensor) -> Tensor:
    """Dense matrices in float64."""
    w, d = weight.double(), block.double()
    if d.ndim == 2:
        return w + d.T.repeat(1, w.shape[1] // R)
    return w + w @ torch.block_diag(*d) + torch.cat(list(d), 1).repeat(w.shape[0] // R, 1)


@pytest.fixture(params=["x060", "x052"])
def base(request, tmp_path):
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in shapes_of(request.param).items()}
    torch.save(tensors, tmp_path / "base.pth")
    return tensors


@pytest.fixture(params=[("bone", "bone"), ("bat", "bone"), ("bat", "disha")], ids="-".join)
def adapter(request, base, tmp_path):
    """All matrices, and the parts ``time`` and ``ln``, as RWKV-PEFT writes them."""
    mode, word = request.param
    tensors = {}
    for name, tensor in base.items():
        if any(name == f"blocks.{n}.{matrix}.weight" for n in range(LAYERS) for matrix in MATRICES):
            tensors[name.replace(".weight", f".{word}")] = block_of(mode, *tensor.shape)
        elif "time" in name or "ln" in name:
            tensors[name] = torch.randn_like(tensor)
    torch.save(tensors, tmp_path / "adapter.pth")
    return tensors


def expected_of(base: dict[str, Tensor], adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    found = base | {name: tensor for name, tensor in adapter.items() if name in base}
    for name, tensor in adapter.items():
        if name not in base:
            weight = name.rpartition(".")[0] + ".weight"
            found[weight] = merged_by_hand(base[weight], tensor)
    return found


def test_merge_convert_and_inspect(base, adapter, tmp_path):
    found = json.loads(run("inspect", tmp_path / "adapter.pth", "--json"))
    blocks = [tensor for name, tensor in adapter.items() if name not in base]
    assert found["r"] == {str(R): LAYERS * len(MATRICES)} and found["nans"] == 0
    assert found["variant"] == ("bone" if blocks[0].ndim == 2 else "bat-input")

    run("convert", tmp_path / "adapter.pth", "--to", "bone", "--out", tmp_path / "folder")
    run("convert", tmp_path / "folder", "--to", "rwkv", "--out", tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert set(again) == {name.replace(".bone", ".disha") for name in adapter}
    for name, tensor in adapter.items():
        found = again[name.replace(".bone", ".disha")]
        assert torch.equal(found, tensor) and found.dtype == tensor.dtype

    expected = expected_of(base, adapter)
    for number, given in enumerate(("adapter.pth", "folder", "again.pth")):
        out = tmp_path / f"merged-{number}.pth"
        run("merge", "--base", tmp_path / "base.pth", "--adapter", tmp_path / given, "--out", out)
        merged = torch.load(out, weights_only=True)
        assert list(merged) == list(base)
        for name, tensor in merged.items():
            assert tensor.dtype == torch.bfloat16 and tensor.shape == base[name].shape
            torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=2**-8, atol=1e-6)


def test_a_whole_model_is_called_by_its_version(base, tmp_path):
    version = "x060" if "blocks.0.att.time_maa_x" in base else "x052"
    with pytest.raises(BoneError, match=rf"whole RWKV model \({version}\)"):
        read_adapter(tmp_path / "base.pth")
