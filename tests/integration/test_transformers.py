"""Bone through Transformers' own adapter methods, without a PeftModel around the base."""

import copy
import io

import pytest
import torch
from peft import get_peft_model, save_as_lora

from ..models import ALL_VARIANTS, config_for, llama, randomize, tokens

variants = pytest.mark.parametrize("variant", ALL_VARIANTS)


@variants
@torch.no_grad()
def test_load_disable_delete(variant, tmp_path):
    base, ids = llama(), tokens()
    plain = base(ids).logits
    saved = randomize(get_peft_model(copy.deepcopy(base), config_for(variant))).eval()
    saved.save_pretrained(tmp_path)
    expected = saved(ids).logits

    base.load_adapter(tmp_path)
    assert base.active_adapters() == ["default"]
    assert torch.equal(base(ids).logits, expected)
    base.disable_adapters()
    assert torch.equal(base(ids).logits, plain)
    base.enable_adapters()
    assert torch.equal(base(ids).logits, expected)
    base.delete_adapter("default")
    assert torch.equal(base(ids).logits, plain)


@variants
def test_add_adapter_and_pickle_the_model(variant):
    model, ids = llama(), tokens()
    model.add_adapter(config_for(variant), adapter_name="mine")
    randomize(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(ids).logits, model(ids).logits)


def test_status():
    model = get_peft_model(llama(), config_for("bottleneck"))
    model.add_adapter("second", config_for("bat"))
    status = model.get_model_status()
    assert status.peft_types == {"default": "BONE", "second": "BONE"}
    assert status.num_adapter_layers == 14 and status.available_adapters == ["default", "second"]
    assert status.requires_grad == {"default": True, "second": False}


@pytest.mark.parametrize("variant", ["bone", "bottleneck"])
@torch.no_grad()
def test_pefts_own_lora_conversion(variant, tmp_path):
    from peft import PeftModel

    model, ids = randomize(get_peft_model(llama(), config_for(variant, r=8))).eval(), tokens()
    expected = model(ids).logits
    save_as_lora(tmp_path, model, rank=8)
    lora = PeftModel.from_pretrained(model.unload(), tmp_path).eval()
    torch.testing.assert_close(lora(ids).logits, expected, atol=1e-5, rtol=1e-5)
