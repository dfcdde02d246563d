"""One of two processes of ``test_sharded``: ``python -m tests.method.tuner.sharded``."""

import copy

import torch
import torch.distributed as dist
import transformers
from peft import get_peft_model, get_peft_model_state_dict
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from bone_peft import BoneError, BoneLayer

from ...models import ALL_VARIANTS, config_for, llama, randomize


def has_fused_experts():
    return int(transformers.__version__.split(".")[0]) >= 5


def mixture():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "vocab_size": 64}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **more))


def adapted(kind, variant, dtype=torch.float32):
    torch.manual_seed(0)
    options = {} if kind == "dense" else {"experts": kind}
    base = llama() if kind == "dense" else mixture()
    config = config_for(variant, r=8, target_modules="all-linear", **options)
    return randomize(get_peft_model(base.to(dtype), config), std=0.1)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gradients(model, ids):
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: whole(p.grad) for name, p in model.named_parameters() if p.requires_grad}


def sharded(model):
    for layer in model.get_base_model().model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert all(isinstance(p, DTensor) for p in model.parameters() if p.requires_grad)
    return model


def check_training(model, reference, tolerance):
    torch.manual_seed(1)
    ids = torch.randint(3, 60, (4, 9))
    loss, found = gradients(model, ids[2 * dist.get_rank() :][:2])
    dist.all_reduce(loss)
    want, exact = gradients(reference, ids)
    torch.testing.assert_close(loss / 2, want, rtol=tolerance, atol=0)
    assert found.keys() == exact.keys()
    for name, gradient in exact.items():
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm() + 1e-7, name
    return ids


def check(kind, variant):
    if variant == "bone":
        model = adapted(kind, variant, torch.bfloat16).train()
        reference = copy.deepcopy(model)
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        check_training(sharded(model), reference, 5e-2)

    model = adapted(kind, variant).train()
    reference = copy.deepcopy(model)
    ids = check_training(sharded(model), reference, 1e-4)

    # As it is, for checkpoints that every process writes its part of.
    own, kept = get_peft_model_state_dict(model), get_peft_model_state_dict(reference)
    assert own.keys() == kept.keys()
    for name, tensor in kept.items():
        assert isinstance(own[name], DTensor)
        torch.testing.assert_close(own[name].full_tensor(), tensor, rtol=0, atol=0)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = get_peft_model_state_dict(model, state_dict=get_model_state_dict(model, options=options))
    if dist.get_rank() == 0:
        kept = get_peft_model_state_dict(reference)
        assert gathered.keys() == kept.keys()
        for name, tensor in kept.items():
            torch.testing.assert_close(gathered[name], tensor, rtol=0, atol=0)

    before = {name: whole(p).clone() for name, p in model.named_parameters()}
    model.eval(), reference.eval()
    model.merge_adapter()
    reference.merge_adapter()
    merged = {n: m for n, m in reference.named_modules() if isinstance(m, BoneLayer)}
    for name, layer in ((n, m) for n, m in model.named_modules() if isinstance(m, BoneLayer)):
        own, other = layer.get_base_layer().weight, merged[name].get_base_layer().weight
        torch.testing.assert_close(whole(own), other.detach(), rtol=1e-6, atol=1e-6, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, reference(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    for name, p in model.named_parameters():
        torch.testing.assert_close(whole(p), before[name], rtol=0, atol=0, msg=name)

    bare = model.merge_and_unload()
    gathered = get_model_state_dict(bare, options=options)
    if dist.get_rank() == 0:
        kept = reference.merge_and_unload().state_dict()
        assert gathered.keys() == kept.keys()
        for name, tensor in kept.items():
            torch.testing.assert_close(gathered[name], tensor, rtol=1e-6, atol=1e-6, msg=name)

    if variant == "bone":
        model = sharded(adapted(kind, variant))
        model.merge_adapter()
        try:
            with model.disable_adapter():
                model(input_ids=ids)
        except BoneError as error:
            assert "call unmerge_adapter() before" in str(error)
        else:
            raise AssertionError("it was put back into what is gathered")


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for kind, variants in (("dense", ALL_VARIANTS), ("each", ALL_VARIANTS), ("shared", ["bone"])):
        if kind == "dense" or has_fused_experts():
            for variant in variants:
                check(kind, variant)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
