"""What a file has, the model takes, or the whole is refused by name."""

import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from bone_peft import BoneConfig, BoneError

from ...models import config_for, llama, randomize, tokens
from ...versions import needs

IDS, BASE = tokens(), llama()


def base():
    return copy.deepcopy(BASE)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def saved(folder, config):
    model = randomize(get_peft_model(base(), config))
    model.save_pretrained(folder)
    return folder, logits(model)


SQUARE = {"target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (config_for("bone", target_modules=["o_proj"]), r"no place in .* such as .*o_proj\.bone_block"),
        (
            config_for("bone", target_modules=["q_proj", "o_proj"]),
            r"no place in .* such as .*o_proj\.bone_block",
        ),
        (config_for("bottleneck", **SQUARE), r"is bone, and .* holds bottleneck"),
        (config_for("bat", **SQUARE), r"is bone, and .* holds bat"),
    ],
)
def test_over_an_adapter_of_another_kind(other, why, tmp_path):
    first, before = saved(tmp_path / "first", config_for("bone", **SQUARE))
    second, _ = saved(tmp_path / "second", other)
    model = PeftModel.from_pretrained(base(), first, adapter_name="a")
    with pytest.raises(BoneError, match=why):
        model.load_adapter(second, "a")
    assert torch.equal(logits(model), before)
    model.delete_adapter("a")
    model.load_adapter(second, "a")
    model.set_adapter("a")
    assert torch.equal(logits(model), logits(PeftModel.from_pretrained(base(), second)))


def test_two_forms_of_bat_that_have_the_same_shapes(tmp_path):
    first, before = saved(tmp_path / "first", config_for("bat", **SQUARE))
    second, _ = saved(tmp_path / "second", config_for("bat-input", **SQUARE))
    model = PeftModel.from_pretrained(base(), first, adapter_name="a")
    with pytest.raises(BoneError, match=r"is bat, and .* holds bat-input"):
        model.load_adapter(second, "a")
    assert torch.equal(logits(model), before)


def test_over_an_adapter_of_the_same_kind(tmp_path):
    first, _ = saved(tmp_path / "first", config_for("bone"))
    second, after = saved(tmp_path / "second", config_for("bone"))
    model = PeftModel.from_pretrained(base(), first, adapter_name="a")
    model.load_adapter(second, "a")
    assert torch.equal(logits(model), after)


def changed(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_file_that_lacks_a_tensor(tmp_path):
    folder, _ = saved(tmp_path, config_for("bone"))
    changed(folder, lambda tensors: tensors.pop("base_model.model.model.layers.1.mlp.up_proj.bone_block"))
    with pytest.raises(BoneError, match=r"Nothing is there for 1 .*layers\.1\.mlp\.up_proj\.bone_block"):
        PeftModel.from_pretrained(base(), folder)


def test_a_file_that_has_more(tmp_path):
    folder, _ = saved(tmp_path, config_for("bone"))
    changed(folder, lambda tensors: tensors.update({"base_model.model.score.weight": torch.zeros(2, 2)}))
    with pytest.raises(BoneError, match=r"1 tensors have no place .*score\.weight"):
        PeftModel.from_pretrained(base(), folder)


@needs("transformers", "5.0")
def test_experts_one_by_one_are_not_dropped(tmp_path):
    """As Transformers 4 had them; Transformers 5 keeps them in one parameter, where Bone has no layer."""
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    moe = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=64, num_experts=4, moe_intermediate_size=16, **settings))
    config = BoneConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(copy.deepcopy(moe), config).save_pretrained(tmp_path)
    name = "base_model.model.model.layers.0.mlp.experts.0.gate_proj.bone_block"
    changed(tmp_path, lambda tensors: tensors.update({name: torch.zeros(8, 16)}))
    options = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(options | {"target_modules": ["q_proj", "gate_proj"]}))
    with pytest.raises(BoneError, match=r"have no place .*experts"):
        PeftModel.from_pretrained(moe, tmp_path)


def test_a_state_dict_by_hand():
    model = randomize(get_peft_model(base(), config_for("bone")))
    tensors = {key.removesuffix(".default.tensor"): t for key, t in model.state_dict().items() if "bone_" in key}
    again = get_peft_model(base(), config_for("bone"))
    set_peft_model_state_dict(again, tensors)
    assert torch.equal(logits(again), logits(model))
    tensors.popitem()
    with pytest.raises(BoneError, match="Nothing is there for 1 tensors"):
        set_peft_model_state_dict(again, tensors)


def test_each_adapter_of_a_bfloat16_base_is_loaded_as_it_is_stored(tmp_path):
    saved(tmp_path, config_for("bone"))
    stored = load_file(tmp_path / "adapter_model.safetensors")
    model = PeftModel.from_pretrained(base().bfloat16(), tmp_path, adapter_name="first")
    model.load_adapter(tmp_path, "second")
    for name in ("first", "second"):
        loaded = {k.replace(f".{name}.tensor", ""): t for k, t in model.state_dict().items() if f".{name}." in k}
        assert loaded.keys() == stored.keys()
        assert all(t.dtype == torch.float32 and torch.equal(t, stored[key]) for key, t in loaded.items())
