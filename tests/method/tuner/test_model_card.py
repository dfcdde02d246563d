"""The README of an adapter tells whoever gets it how to load it."""

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import bone_peft

from ...models import config_for, llama


def readme(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def test_saving_explains_once(tmp_path):
    model = get_peft_model(llama(), config_for("bone", target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert readme(tmp_path).startswith("---\n")
    assert readme(tmp_path).count("import bone_peft") == 1
    bone_peft.convert(tmp_path, "bone", tmp_path / "again")
    assert readme(tmp_path / "again").count("bone activate") == 1


def test_other_methods_have_their_own_words(tmp_path):
    get_peft_model(llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert "bone" not in readme(tmp_path)


def test_a_config_that_peft_cannot_read_costs_no_adapter(tmp_path):
    class Config:
        model_type = "own"

        def get(self, name, default=None):
            return default

    base = llama()
    model = get_peft_model(base, config_for("bone", target_modules=["q_proj"]))
    base.config = Config()  # RWKV-PEFT has one like it
    with pytest.warns(UserWarning, match="says nothing of its base"):
        model.save_pretrained(tmp_path)
    assert readme(tmp_path).count("import bone_peft") == 1
    assert load_file(tmp_path / "adapter_model.safetensors")
