import pytest
import torch
from rwkv7_hf.converter import translate_name

from bone_peft.rwkv.pth_names import hf_layout, hf_name, pth_layout, pth_name

from .conftest import small_model


def test_every_tensor_of_a_model_has_a_name_in_both_worlds(base):
    stored = torch.load(base, weights_only=True)
    assert {hf_name(name) for name in stored} == set(small_model().state_dict())
    assert [pth_name(hf_name(name)) for name in stored] == list(stored)


def test_the_library_gives_the_same_names_and_layouts(base):
    for name, tensor in torch.load(base, weights_only=True).items():
        theirs, transposed = translate_name(name, 2)
        assert hf_name(name).replace(".mix.", ".") == theirs
        if transposed:
            assert torch.equal(hf_layout(name, tensor), tensor.t())
        assert torch.equal(pth_layout(name, hf_layout(name, tensor)), tensor)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.3.att.gate.weight",  # x060
        "blocks.3.att.time_maa_x",
        "blocks.3.ffn.receptance.weight",
        "blocks.11.att.receptance",
        "blocks.11.ln1",
        "emb",
        "head.weight",
    ],
)
def test_names_of_other_versions_come_back(name):
    assert hf_name(name) != name
    assert pth_name(hf_name(name)) == name


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "transformer.h.0.attn.c_attn", "embedding.weight", ""])
def test_names_of_other_models_stay(name):
    assert hf_name(name) == pth_name(name) == name
