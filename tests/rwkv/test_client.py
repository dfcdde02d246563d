"""The merged file in the ``rwkv`` package, which shares no code with this project."""

import os

import pytest
import torch
from peft import get_peft_model

from bone_peft import BoneConfig
from bone_peft.files.adapters import read_adapter, write_adapter
from bone_peft.files.bases import load_adapter, load_base
from bone_peft.files.merging import merge
from bone_peft.rwkv.pth_model import load_model

from .conftest import move

TIME = ["mix", "w_lora", "a_lora", "v_lora", "g_lora"]
NORMS = ["attn_norm", "ffn_norm", "pre_norm", "g_norm", "model.norm"]
CASES = {
    "bone": {"r": 32},
    "bone, ragged": {"r": 48},
    "bat-input": {"r": 32, "init_weights": "bat", "share": "input"},
    "bat": {"r": 16, "init_weights": "bat"},
    "bottleneck": {"bottleneck_size": 8},
    "bone, all-linear": {"r": 32, "target_modules": "all-linear"},
    "bone and all other parts": {"r": 32, "modules_to_save": [*TIME, *NORMS, "embeddings", "lm_head"]},
}
IN_RWKV_PEFT = {"bone", "bone, ragged", "bat-input", "bone, all-linear", "bone and all other parts"}


@pytest.fixture(scope="module")
def client_class():
    os.environ["RWKV_V7_ON"] = "1"
    return pytest.importorskip("rwkv.model").RWKV


def adapted(base, options, folder):
    """A model whose adapter, and all that is trained beside it, has been moved; saved in ``folder``."""
    model, _ = load_base(str(base), dtype="float32")
    model = get_peft_model(model, BoneConfig(task_type="CAUSAL_LM", **options)).eval()
    move(model)
    model.save_pretrained(str(folder))
    return model


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return float((found - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_merged_logits_are_those_of_the_adapted_model(base, tmp_path, client_class, ids, case):
    row = ids[:1]
    before = load_base(str(base), dtype="float32")[0](row).logits[0]
    model = adapted(base, CASES[case], tmp_path / "adapter")
    adapter, _ = read_adapter(tmp_path / "adapter")
    assert len(adapter.layers) == 2 * 6, "the six matrices of each block are the targets"
    expected = model(row).logits[0]
    assert not close(expected, before, 1e-2)

    merge(str(base), tmp_path / "adapter", tmp_path / "merged.pth")
    client = client_class(str(tmp_path / "merged"), "cpu fp32")
    assert close(client.forward(row[0].tolist(), None, full_output=True)[0], expected)
    assert close(load_model(tmp_path / "merged.pth")(row).logits[0], expected, 1e-5)
    if case in IN_RWKV_PEFT:
        theirs = tmp_path / "theirs.pth"
        write_adapter(adapter, "rwkv", theirs)
        assert sum(name.endswith(".disha") for name in torch.load(theirs, weights_only=True)) == 12
        again = load_adapter(load_base(str(base), dtype="float32")[0], theirs)
        torch.testing.assert_close(again(row).logits[0], expected)
        merge(str(base), theirs, tmp_path / "merged-again.pth")
        one, other = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("merged", "merged-again"))
        assert all(torch.equal(one[name], other[name]) for name in one)
