"""Checkpoints that PEFT 0.18.1 wrote load as they are and give what that release gave."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

CASES = ["bone-llama", "bat-llama", "bone-llama-ragged"]


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("case", CASES)
def test_logits_gradients_and_merged_weights(fixtures, case):
    folder = fixtures / "peft-0.18.1" / case
    expected = load_file(folder / "expected.safetensors")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).eval()
    checked = {"input_ids"}

    ids = expected["input_ids"]
    output = model(input_ids=ids, labels=ids)
    assert relative_error(output.logits, expected["logits"]) <= 1e-6
    assert relative_error(output.loss.reshape(1), expected["loss"]) <= 1e-6
    checked |= {"logits", "loss"}

    output.loss.backward()
    parameters = dict(model.named_parameters())
    for key in (key for key in expected if key.startswith("grad.")):
        assert relative_error(parameters[key.removeprefix("grad.") + ".tensor"].grad, expected[key]) <= 1e-6, key
        checked.add(key)

    merged = model.merge_and_unload()
    weights = merged.state_dict()
    for key in (key for key in expected if key.startswith("merged.")):
        assert relative_error(weights[key.removeprefix("merged.")], expected[key]) <= 1e-6, key
        checked.add(key)
    assert relative_error(merged(ids).logits, expected["merged_logits"]) <= 1e-6
    checked.add("merged_logits")
    assert checked == set(expected)
