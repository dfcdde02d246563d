"""Under FSDP2 (``fully_shard``) in two processes, everything is what it is in one."""

import copy
import sys

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import GPT2LMHeadModel

from bone_peft import BoneError, BoneLayer
from bone_peft.files.conversion.live import adapter_of

from ...models import ALL_VARIANTS, SMALL, config_for, gpt2, llama, randomize, tokens
from ...versions import needs
from .two_processes import in_two_processes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked")

_FUSED = needs("transformers", "5.0")
kinds = pytest.mark.parametrize("kind", ["llama", *(pytest.param(kind, marks=_FUSED) for kind in ("each", "shared"))])
llama_and_experts = pytest.mark.parametrize("kind", ["llama", pytest.param("each", marks=_FUSED)])


def adapted(kind: str, variant: str, dtype: torch.dtype = torch.float32, **options) -> PeftModel:
    """A tiny Llama, or a mixture of experts, which two processes cannot share evenly, with adapters for ``each``."""
    if kind == "llama":
        base = llama(intermediate_size=44)
        options = {"r": 4, **options}
    else:
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

        sizes = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 8}
        base = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **sizes, max_position_embeddings=64))
        options = {"r": 4, "target_modules": "all-linear", "experts": kind, **options}
    return randomize(get_peft_model(base.to(dtype), config_for(variant, **options)).eval())


def sharded(plain: PeftModel, **options) -> PeftModel:
    """A copy of which each process has a part: each decoder layer by itself, and the rest."""
    model = copy.deepcopy(plain)
    inner = model.get_base_model()
    for layer in inner.transformer.h if isinstance(inner, GPT2LMHeadModel) else inner.model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def gathered(model, cpu_offload: bool = False):
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=cpu_offload))


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


def layers(model):
    return [module for module in model.modules() if isinstance(module, BoneLayer)]


def step(model, ids):
    """The loss, with gradients of the adapters. Each process has half of the rows."""
    loss = model(ids, labels=ids).loss
    loss.backward()
    return loss.detach()


def mean(loss):
    dist.all_reduce(loss)
    return loss / 2


def check_gradients(model, plain, tolerance):
    trained = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    assert trained and all(grad.any() for grad in trained.values())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
        if parameter.grad is not None:
            assert isinstance(parameter.grad, DTensor) and parameter.grad.dtype == torch.float32
            torch.testing.assert_close(parameter.grad.full_tensor(), trained[name], **tolerance, msg=name)


# Training


def trains(kind, variant):
    plain = adapted(kind, variant).train()
    models = {checkpointing: sharded(plain) for checkpointing in (False, True)}
    ids = tokens(rows=4)
    expected = step(plain, ids)
    for checkpointing, model in models.items():
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = mean(step(model, ids.chunk(2)[dist.get_rank()]))
        torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
        check_gradients(model, plain, {"atol": 1e-6, "rtol": 1e-4})


@kinds
def test_loss_and_gradients(kind, tmp_path):
    in_two_processes(tmp_path, trains, [(kind, variant) for variant in ALL_VARIANTS])


def trains_on_bfloat16(variant):
    plain = adapted("llama", variant, torch.bfloat16).train()
    model, halves = sharded(plain), tokens(rows=4).chunk(2)
    expected = sum(step(plain, half) for half in halves) / 2
    for parameter in plain.parameters():
        parameter.grad = None if parameter.grad is None else parameter.grad / 2
    loss = mean(step(model, halves[dist.get_rank()]))
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    check_gradients(model, plain, {"atol": 1e-6, "rtol": 1e-4})


def test_a_bfloat16_base_with_float32_adapters(tmp_path):
    in_two_processes(tmp_path, trains_on_bfloat16, [(variant,) for variant in ALL_VARIANTS])


# Merging


def merges(kind, variant, dtype):
    plain = adapted(kind, variant, dtype)
    model = sharded(plain)
    ids, before = tokens(), {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    with torch.no_grad():
        unmerged = model(ids).logits
        for layer, own in zip(layers(model), layers(plain), strict=True):
            assert torch.equal(layer.get_delta_weight("default"), own.get_delta_weight("default"))
        plain.merge_adapter()
        model.merge_adapter(safe_merge=True)
        assert not torch.equal(model(ids).logits, unmerged)
        assert torch.equal(model(ids).logits, plain(ids).logits)
        assert_same_bits(gathered(model), plain.state_dict())

        kept, own = (layers(m)[0]._unmerged_base.weight for m in (model, plain))
        assert kept.to_local().untyped_storage().nbytes() == own.untyped_storage().nbytes() / 2

        model.unmerge_adapter()
        assert_same_bits(gathered(model), before)
        assert torch.equal(model(ids).logits, unmerged)
        model.merge_adapter()
        exported = model.merge_and_unload()
        assert_same_bits(gathered(exported), plain.merge_and_unload().state_dict())


@kinds
def test_merging_and_back(kind, tmp_path):
    in_two_processes(tmp_path, merges, [(kind, variant, torch.float32) for variant in ALL_VARIANTS])


@llama_and_experts
def test_merging_into_bfloat16(kind, tmp_path):
    in_two_processes(tmp_path, merges, [(kind, variant, torch.bfloat16) for variant in ALL_VARIANTS])


def merges_what_is_put_together(kind):
    """FSDP2 leaves what the outermost module has as one tensor, here rounded, and forgets it before the next run."""
    plain = adapted(kind, "bone")
    whole = fully_shard(copy.deepcopy(plain), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    kept = sharded(plain, reshard_after_forward=False)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    bare = copy.deepcopy(plain).unload().state_dict()
    deltas = [layer.get_delta_weight("default") for layer in layers(plain)]
    plain.merge_adapter()
    for model in (whole, kept):
        with torch.no_grad():
            model(tokens())
            base = layers(model)[0].get_base_layer()
            assert not isinstance(base.weight, DTensor)
            for layer, delta in zip(layers(model), deltas, strict=True):
                assert torch.equal(layer.get_delta_weight("default"), delta)
            model(tokens())
            assert not isinstance(base.weight, DTensor)
            model.merge_adapter()
            assert_same_bits(gathered(model), plain.state_dict())
            model(tokens())
            model.unmerge_adapter()
            assert_same_bits(gathered(model), before)
            model(tokens())
            assert_same_bits(gathered(model.unload()), bare)


@llama_and_experts
def test_merging_what_is_put_together(kind, tmp_path):
    in_two_processes(tmp_path, merges_what_is_put_together, [(kind,)])


def is_disabled(kind):
    plain = adapted(kind, "bat")
    model, ids = sharded(plain), tokens()
    with torch.no_grad():
        with plain.disable_adapter():
            base = plain(ids).logits
        model(ids)
        model.merge_adapter()
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, base)
        assert torch.equal(model(ids).logits, plain(ids).logits)
        with model.disable_adapter():
            model.merge_adapter()
            with pytest.raises(BoneError, match="unmerge_adapter"):
                model(ids)


@llama_and_experts
def test_disabling_merged_adapters(kind, tmp_path):
    in_two_processes(tmp_path, is_disabled, [(kind,)])


def merges_conv1d_before_and_after():
    config = config_for("bone", r=4, target_modules=["c_attn", "c_proj", "c_fc"])
    plain = randomize(get_peft_model(gpt2(), config))
    model = sharded(plain)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    plain.merge_adapter()
    model.merge_adapter()
    assert_same_bits(gathered(model), plain.state_dict())
    # Merged, and then sharded.
    fully_shard(plain)
    plain.unmerge_adapter()
    assert_same_bits(gathered(plain), before)


def test_conv1d_and_what_was_merged_before(tmp_path):
    in_two_processes(tmp_path, merges_conv1d_before_and_after)


def refuses_a_tied_head():
    plain = randomize(
        get_peft_model(llama(tie_word_embeddings=True), config_for("bone", target_modules=["lm_head", "q_proj"]))
    )
    model = sharded(plain)
    before = gathered(model)
    with pytest.raises(BoneError, match=r"lm_head: the weight .* is sharded and another layer's as well.*bone merge"):
        model.merge_adapter()
    assert_same_bits(gathered(model), before)


def test_a_tied_head_is_refused(tmp_path):
    in_two_processes(tmp_path, refuses_a_tied_head)


# Files


def saves(kind, variant, folder):
    plain = adapted(kind, variant)
    model, is_first = sharded(plain), dist.get_rank() == 0
    expected = get_peft_model_state_dict(plain)
    state = gathered(model, cpu_offload=True)
    assert bool(state) == is_first
    if is_first:
        assert_same_bits(get_peft_model_state_dict(model, state_dict=state), expected)
    model.save_pretrained(folder / "whole", state_dict=state, is_main_process=is_first)
    dist.barrier()
    assert_same_bits(load_file(folder / "whole" / "adapter_model.safetensors"), expected)

    # Not gathered; torch.save would take it.
    for options in ({}, {"safe_serialization": False}, {"state_dict": {}}):
        with pytest.raises(BoneError, match=r"bone_.* is sharded: gather the state dict in all processes"):
            model.save_pretrained(folder / "parts", **options)
    # Checkpoints of several processes are made of parts.
    assert all(isinstance(tensor, DTensor) for tensor in get_peft_model_state_dict(model).values())

    local = {name: tensor.to_local() for name, tensor in model.state_dict().items() if isinstance(tensor, DTensor)}
    with pytest.raises(BoneError, match=r"bone_.* here and \(.*\) as a whole: gather the state dict"):
        model.save_pretrained(folder / "parts", state_dict=local)
    if is_first:
        with pytest.raises(BoneError, match=r"bone_.* here and \(.*\) as a whole: gather the state dict"):
            get_peft_model_state_dict(model, state_dict=local)
    dist.barrier()
    assert not list((folder / "parts").glob("adapter_*"))


@kinds
def test_saving(kind, tmp_path):
    in_two_processes(tmp_path, saves, [(kind, variant, tmp_path / variant) for variant in ALL_VARIANTS])


def test_what_is_elsewhere_is_not_saved(tmp_path):
    model = adapted("llama", "bone")
    layers(model)[0].bone_block["default"].data = torch.empty(0)  # As ZeRO-3 has it.
    with pytest.raises(BoneError, match=r"q_proj.bone_block is \(0,\) here and \(4, 32\) as a whole"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("adapter_*"))


def loads(kind, folder):
    plain = adapted(kind, "bone")
    other = randomize(copy.deepcopy(plain))
    expected = get_peft_model_state_dict(other)
    if dist.get_rank() == 0:
        other.save_pretrained(folder / "other")
    dist.barrier()
    ids = tokens()
    for load in (
        lambda model: set_peft_model_state_dict(model, expected),
        lambda model: model.load_adapter(str(folder / "other"), "default"),
        lambda model: hotswap_adapter(model, str(folder / "other"), "default"),
    ):
        model = sharded(plain)
        with torch.no_grad():
            model(ids)
            load(model)
            assert torch.equal(model(ids).logits, other(ids).logits)
        assert_same_bits({k: t.full_tensor() for k, t in get_peft_model_state_dict(model).items()}, expected)
    live = adapter_of(model)
    for name, params in adapter_of(other).layers.items():
        assert_same_bits(live.layers[name], params)


@llama_and_experts
def test_loading(kind, tmp_path):
    in_two_processes(tmp_path, loads, [(kind, tmp_path)])


def check_4bit(folder, variant):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch.manual_seed(0)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=quantization).eval()
    plain = randomize(get_peft_model(base, config_for(variant)))
    model = sharded(plain)
    ids = tokens(1)
    torch.testing.assert_close(step(model, ids), step(plain, ids))
    check_gradients(model, plain, {"rtol": 1e-4, "atol": 1e-6})


@pytest.mark.parametrize("variant", ["bone", "bat"])
def test_a_base_in_4_bits(tmp_path, variant):
    pytest.importorskip("bitsandbytes")
    llama(hidden_size=128, intermediate_size=192).save_pretrained(tmp_path)
    in_two_processes(tmp_path, check_4bit, [(tmp_path, variant)])
