"""Linears quantized by bitsandbytes, which runs on the CPU too."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from bone_peft import BoneLayer

from ..models import ALL_VARIANTS, config_for, llama, randomize, tokens

bnb = pytest.importorskip("bitsandbytes", reason="the bitsandbytes extra is not installed")

variants = pytest.mark.parametrize("variant", ALL_VARIANTS)
bits = pytest.mark.parametrize("bits", [8, 4])


def quantize(model: nn.Module, bits: int) -> nn.Module:
    """Replace the linears of the decoder by bitsandbytes', as loading with a quantization config does."""
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            shape = {
                "input_features": module.in_features,
                "output_features": module.out_features,
                "bias": False,
            }
            if bits == 8:
                new = bnb.nn.Linear8bitLt(**shape, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
            else:
                new = bnb.nn.Linear4bit(**shape, compute_dtype=torch.float32, quant_type="nf4")
                new.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4", module=new)
            parent, _, child = name.rpartition(".")
            setattr(model.model.get_submodule(parent), child, new.to("cpu"))
    return model


def quantized_model(variant, bits):
    base = quantize(llama(hidden_size=64, intermediate_size=128), bits)
    return randomize(get_peft_model(base, config_for(variant))).eval()


@variants
@bits
def test_the_adapter_adds_what_it_adds(variant, bits):
    model = quantized_model(variant, bits)
    layer = next(module for module in model.modules() if isinstance(module, BoneLayer))
    x = torch.randn(5, layer.in_features)
    weight = layer.get_base_weight().float()
    expected = x @ (weight + layer.get_delta_weight("default")).T
    # In 8 bits the base layer rounds its input as well, so its own error is the measure.
    allowed = (layer.base_layer(x) - x @ weight.T).norm() * 2 + 1e-4 * expected.norm()
    assert (layer(x) - expected).norm() <= allowed


@variants
@bits
def test_it_trains(variant, bits):
    model = quantized_model(variant, bits).train()
    ids = tokens()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@variants
@bits
def test_merge_and_unmerge_bit_for_bit(variant, bits):
    model = quantized_model(variant, bits)
    ids = tokens()

    def bits_of_the_base():
        tensors = {}
        for name, module in model.named_modules():
            if isinstance(module, BoneLayer):
                base = module.get_base_layer()
                tensors[name] = base.weight.data.clone()
                for owner in (getattr(base, "state", None), getattr(base.weight, "quant_state", None)):
                    known = vars(owner) if hasattr(owner, "__dict__") else {}
                    tensors |= {f"{name}.{k}": v.clone() for k, v in known.items() if isinstance(v, torch.Tensor)}
        return tensors

    with torch.no_grad():
        with model.disable_adapter():
            base = model(ids).logits  # from here on bitsandbytes has its weights in the layout for inference
        before, adapted = bits_of_the_base(), model(ids).logits
        for _ in range(3):
            model.merge_adapter()
            # Merging quantizes the merged weight anew; it has to land nearer to the adapted model than the base is.
            assert (model(ids).logits - adapted).norm() < (base - adapted).norm()
            model.unmerge_adapter()
            after = bits_of_the_base()
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert torch.equal(model(ids).logits, adapted)


def test_loaded_with_a_quantization_config(tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    model = randomize(get_peft_model(base, config_for("bone"))).eval()
    layers = [module for module in model.modules() if isinstance(module, BoneLayer)]
    assert {type(layer.get_base_layer()) for layer in layers} == {bnb.nn.Linear8bitLt}
    assert model(tokens()).logits.isfinite().all()
