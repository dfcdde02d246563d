"""The lines of the documents that people have, unchanged, on tiny models of the same architectures.

Only what surrounds them is ours: where their text names a model on a hub, loading it gives a tiny one.
"""

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import bone_peft

from ..models import llama, opt, randomize, tokens


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """A hub that has the documents' models, all tiny."""

    def model(name, **kwargs):
        small = opt() if "opt" in name else llama()
        return small.to(kwargs.get("dtype") or kwargs.get("torch_dtype") or torch.float32)

    def tokenizer(name, **kwargs):
        made = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
        return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", bos_token="<s>", unk_token="<unk>")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", tokenizer)


def adapted_layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, bone_peft.BoneLayer)]


def test_bottleneck_guide():
    # fmt: off
    from peft import TaskType  # the guide's first snippet uses it without importing it

    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")

    # Basic usage
    from peft import BoneConfig, get_peft_model

    # Define Bone configuration
    config = BoneConfig(
        task_type=TaskType.CAUSAL_LM,
        bottleneck_size=32,  # Reduced size based on benchmarks
        bottleneck_alpha=2.0,  # Reduced alpha based on benchmarks
        bottleneck_dropout=0.1,
        target_modules=["q_proj", "v_proj"],  # Focus on key modules
    )

    # Create PEFT model
    model = get_peft_model(model, config)
    # end of quote
    assert len(adapted_layers(model)) == 4 and config.layer_size() == 64

    # Advanced configuration
    config = BoneConfig(
        task_type=TaskType.CAUSAL_LM,
        bottleneck_size=64,  
        bottleneck_alpha=4.0,  
        bottleneck_dropout=0.1,
        target_modules=["q_proj", "v_proj", "k_proj", "o_proj"],  # More modules for greater adaptation
    )
    assert config.layer_size() == 256

    # High parameter count
    config = BoneConfig(
        bottleneck_size=32,  # Smaller bottleneck
        bottleneck_alpha=2.0,  # Lower alpha
        target_modules=["q_proj", "v_proj"],  # Focus on key modules only
        bottleneck_dropout=0.1,
    )
    bone_config, model = config, AutoModelForCausalLM.from_pretrained("facebook/opt-350m")

    # Slow inference
    model = get_peft_model(model, bone_config)
    # ... train the model ...
    randomize(model).eval()
    ids = tokens()
    adapted = model(ids).logits

    # For inference:
    model.merge_bone_layers()  # Merges weights for fast inference
    # ... run inference ...
    torch.testing.assert_close(model(ids).logits, adapted, atol=1e-5, rtol=1e-5)
    assert all(layer.merged for layer in model.modules() if isinstance(layer, bone_peft.BoneLayer))
    # fmt: on


def test_bottleneck_guide_example():
    # fmt: off
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from peft import BoneConfig, get_peft_model, TaskType

    # Load base model
    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m")
    tokenizer = AutoTokenizer.from_pretrained("facebook/opt-350m")

    # Configure Bone
    config = BoneConfig(
        task_type=TaskType.CAUSAL_LM,
        bottleneck_size=32,
        bottleneck_alpha=2.0,
        bottleneck_dropout=0.1,
        target_modules=["q_proj", "v_proj"],
    )

    # Create PEFT model
    model = get_peft_model(model, config)

    # After training, merge for efficient inference
    model.merge_bone_layers()
    # fmt: on
    assert model(tokens()).logits.isfinite().all() and tokenizer is not None


def test_papers_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # fmt: off
    import torch
    import os
    from peft import BoneConfig, get_peft_model
    from transformers import AutoTokenizer, AutoModelForCausalLM
    MODEL_ID = "meta-llama/Llama-2-7b-hf"
    model = AutoModelForCausalLM.from_pretrained(MODEL_ID, torch_dtype=torch.bfloat16, device_map="auto")
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    tokenizer.pad_token_id = tokenizer.eos_token_id
    bone_config = BoneConfig(
        r=64,
        target_modules=["q_proj", "o_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, bone_config)
    peft_model.print_trainable_parameters()
    OUTPUT_DIR="Bone-Llama-2-7b-hf-r64"
    # Save Bone modules:
    peft_model.peft_config["default"].init_lora_weights = True # Important
    peft_model.save_pretrained(OUTPUT_DIR)
    # Save residual model:
    peft_model = peft_model.unload()
    peft_model.save_pretrained(OUTPUT_DIR)
    # Save the tokenizer:
    tokenizer.save_pretrained(OUTPUT_DIR)
    # fmt: on
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    folder = tmp_path / OUTPUT_DIR
    assert os.path.exists(folder / "tokenizer.json")
    saved_base = LlamaForCausalLM(LlamaForCausalLM.config_class.from_pretrained(folder)).to(torch.bfloat16)
    saved_base.load_state_dict(load_file(folder / "model.safetensors"))
    assert len(adapted_layers(PeftModel.from_pretrained(saved_base, folder))) == 14


def test_documentation_page():
    from peft.tuners import bone

    assert bone.config.BoneConfig is bone_peft.BoneConfig
    assert bone.model.BoneModel is bone_peft.BoneModel
    assert bone.config.BoneConfig.__doc__ and bone.model.BoneModel.__doc__


def test_layer_page():
    # fmt: off
    from peft.tuners.bone import BoneLayer, BoneConfig, BoneModel

    from peft import BoneConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    # Load base model
    model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf")

    # Configure BONE
    config = BoneConfig(
        r=64,                # Block size
        target_modules=["q_proj", "v_proj"],
        init_weights=True,   # Initialize to identity (zeros)
    )

    # Create PEFT model
    model = get_peft_model(model, config)
    # end of quote
    assert len(adapted_layers(model)) == 4

    model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf", size=64)
    model = llama(hidden_size=64, num_key_value_heads=4)

    # BAT (Block Affine Transformation) mode
    config = BoneConfig(
        r=32,
        target_modules=["q_proj", "k_proj", "v_proj"],
        init_weights="bat",  # Use multiplicative block transformation
    )

    model = get_peft_model(model, config)
    # fmt: on
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, BoneLayer) and isinstance(model.base_model, BoneModel)
    assert BoneLayer.other_param_names[0] == "bone_r" and "bone_block" in BoneLayer.adapter_layer_names
    assert layer.bone_r == {"default": 32} and layer.bone_block["default"].shape == (2, 32, 32)

    from peft.tuners.bone import BoneLinear

    single = BoneLinear(torch.nn.Linear(16, 8), "default", r=4, init_weights=False)
    assert single.get_delta_weight("default").shape == (8, 16)
    single.update_layer("second", r=4, init_weights="bat")
    assert single.bone_block["second"].shape == (2, 4, 4)


def test_model_page():
    # fmt: off
    from peft.tuners.bone import BoneModel

    from peft import get_peft_model, BoneConfig
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("facebook/opt-125m")
    config = BoneConfig(
        r=8,
        target_modules=["k_proj", "q_proj", "v_proj", "out_proj", "fc1", "fc2"],
        init_weights=True,
    )
    model = get_peft_model(model, config)
    # fmt: on
    assert len(adapted_layers(model)) == 12

    direct = BoneModel(opt(), BoneConfig(r=8, target_modules=["fc1"]), "default")
    assert BoneModel.prefix == "bone_" and len(adapted_layers(direct)) == 2
    assert direct(tokens()).logits.isfinite().all()
