"""Models whose weights lie elsewhere and come to the device only while a layer runs (Accelerate's hooks)."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from ..models import ALL_VARIANTS, config_for, llama, randomize, tokens


@pytest.mark.parametrize("variant", ALL_VARIANTS)
@torch.no_grad()
def test_an_offloaded_model_answers_merges_and_unmerges(variant):
    model = randomize(get_peft_model(llama(), config_for(variant))).eval()
    ids = tokens()
    expected = model(ids).logits
    offloaded = copy.deepcopy(model)
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    layer = offloaded.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.get_base_layer().weight.device.type == "meta"

    assert torch.equal(offloaded(ids).logits, expected)
    offloaded.merge_adapter()
    torch.testing.assert_close(offloaded(ids).logits, expected, atol=1e-5, rtol=1e-5)
    offloaded.unmerge_adapter()
    assert torch.equal(offloaded(ids).logits, expected)
    assert layer.get_base_layer().weight.device.type == "meta"


@pytest.fixture
def offloaded_base(tmp_path):
    """A base that Accelerate has offloaded before it has an adapter: one of two layers is on the disk."""
    base = llama()
    base.save_pretrained(tmp_path / "base")
    stay = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")

    def load():
        places = {**dict.fromkeys(stay, "cpu"), "model.layers.1": "disk"}
        options = {"device_map": places, "offload_folder": tmp_path / "offload"}
        return LlamaForCausalLM.from_pretrained(tmp_path / "base", **options).eval()

    return base, load


def places(model):
    return {parameter.device.type for name, parameter in model.named_parameters() if ".bone_" in name}


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_an_adapter_for_a_base_that_is_offloaded_already(offloaded_base, tmp_path, variant):
    base, load = offloaded_base
    torch.manual_seed(1)
    new = get_peft_model(load(), config_for(variant))
    assert places(new) == {"cpu"}
    plain = randomize(get_peft_model(base, config_for(variant)), std=0.2)
    plain.save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(load(), tmp_path / "adapter", is_trainable=True)
    assert places(model) == {"cpu"} and "disk" in model.hf_device_map.values()

    ids = tokens()
    expected = plain(ids, labels=ids)
    loss = model(ids, labels=ids).loss
    torch.testing.assert_close(loss, expected.loss)
    loss.backward()
    expected.loss.backward()
    wanted = dict(plain.named_parameters())
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    for name, parameter in trained:
        torch.testing.assert_close(parameter.grad, wanted[name].grad)

    model.eval().merge_adapter()
    torch.testing.assert_close(model(ids).logits, expected.logits, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    model.save_pretrained(tmp_path / "again")
    assert_same(tmp_path / "again", tmp_path / "adapter")
    model.load_adapter(tmp_path / "again", "default")
    torch.testing.assert_close(model(ids).logits, expected.logits)


def assert_same(folder, other):
    found, wanted = (load_file(path / "adapter_model.safetensors") for path in (folder, other))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
