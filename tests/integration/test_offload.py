"""Models whose weights lie elsewhere and come to the device only while a layer runs (Accelerate's hooks)."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from peft import get_peft_model

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
