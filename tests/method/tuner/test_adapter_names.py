"""Any name will do: what is saved and loaded does not depend on what adapters are called."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForSequenceClassification

from bone_peft import BoneConfig, BoneError

from ...models import ALL_VARIANTS, config_for, llama, randomize, tokens

# Parts of the names of modules and parameters, of a container's own attributes, and what people take.
NAMES = ["0", "1", "layers", "q_proj", "self_attn", "model", "base_model", "bone_block", "tensor", "base_layer"]
NAMES += ["keys", "items", "forward", "weight", "bias", "a", "b", "proj", "adapter", "default"]


IDS, BASE = tokens(), llama()


def logits(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(ids).logits


@pytest.mark.parametrize("second", NAMES)
@pytest.mark.parametrize("first", ["default", "layers", "0"])
def test_every_name_is_saved_and_loaded(first, second, tmp_path):
    if first == second:
        pytest.skip("one name")
    base, ids = llama(), tokens()
    model = get_peft_model(copy.deepcopy(base), config_for("bone", bias="all"), adapter_name=first)
    model.add_adapter(second, config_for("bone", target_modules=["q_proj"]))
    randomize(model)
    expected = {}
    for name in (first, second):
        model.set_adapter(name)
        expected[name] = logits(model, ids)
    model.save_pretrained(tmp_path)
    folders = {name: tmp_path if name == "default" else tmp_path / name for name in (first, second)}
    files = {name: load_file(folder / "adapter_model.safetensors") for name, folder in folders.items()}
    assert sum(key.endswith(".bone_block") for key in files[first]) == 14
    assert {key.rpartition(".")[2] for key in files[second]} == {"bone_block"} and len(files[second]) == 2

    loaded = PeftModel.from_pretrained(copy.deepcopy(base), folders[first], adapter_name=first)
    loaded.load_adapter(folders[second], second)
    for name in (first, second):
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded, ids), expected[name])
    loaded.delete_adapter(first)
    assert torch.equal(logits(loaded, ids), expected[second])


@pytest.mark.parametrize("second", ["weight", "model", "original_module", "0"])
def test_modules_to_save_beside_an_adapter_of_their_name(second, tmp_path):
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    base = LlamaForSequenceClassification(LlamaConfig(vocab_size=64, pad_token_id=0, **settings))
    config = {"r": 8, "target_modules": ["q_proj"], "task_type": "SEQ_CLS"}
    model = randomize(get_peft_model(copy.deepcopy(base), BoneConfig(**config)))
    torch.nn.init.normal_(model.base_model.model.score.modules_to_save["default"].weight)
    expected = logits(model)
    model.add_adapter(second, BoneConfig(**{**config, "task_type": "FEATURE_EXTRACTION"}))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path)), expected)


@pytest.mark.parametrize("name", ["", "a.b", ".", "training"])
def test_names_that_cannot_be_are_refused(name):
    model = get_peft_model(llama(), config_for("bone"))
    with pytest.raises(BoneError, match=r"cannot be called .*: choose another name"):
        model.add_adapter(name, config_for("bone"))
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_programs_find_the_name_as_a_part_of_its_own(variant):
    """TRL copies the parameters with ``.default.`` in their names to a reference."""
    model = randomize(get_peft_model(llama(), config_for(variant)))
    model.add_adapter("ref", config_for(variant))
    for name, parameter in list(model.named_parameters()):
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    model.set_adapter("default")
    expected = logits(model)
    model.set_adapter("ref")
    assert torch.equal(logits(model), expected)


def test_a_state_dict_of_version_0_1_loads():
    model = randomize(get_peft_model(copy.deepcopy(BASE), config_for("bone")))
    old = {key.removesuffix(".tensor"): value for key, value in model.state_dict().items()}
    again = get_peft_model(copy.deepcopy(BASE), config_for("bone"))
    again.load_state_dict(old)
    assert torch.equal(logits(again), logits(model))
