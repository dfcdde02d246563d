"""Where tensor parallel has split a model over two processes, everything is what it is in one."""

import sys

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

from bone_peft import BoneError, BoneLayer

from ...models import ALL_VARIANTS, SMALL, config_for, llama, randomize, tokens
from ...versions import needs
from .two_processes import in_two_processes

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked"),
    needs("transformers", "5.17"),
]


def split(folder, dtype=torch.float32):
    """The model of ``folder``, of which each process has a part."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    return AutoModelForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(tp_size=2), dtype=dtype
    ).eval()


def pair(folder, variant, dtype=torch.float32, **options):
    """The same adapted model, whole and split, with the same random values."""
    base = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    whole = randomize(get_peft_model(base, config_for(variant, **options))).eval()
    adapter = folder / f"adapter-{dist.get_rank()}"
    whole.save_pretrained(adapter)
    return whole, PeftModel.from_pretrained(split(folder, dtype), adapter, is_trainable=True).eval()


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=3e-6)


def own(tensor):
    """What this process has of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def adapters(model):
    return {name: parameter for name, parameter in model.named_parameters() if ".bone_" in name}


def layers(model):
    return [module for module in model.modules() if isinstance(module, BoneLayer)]


def check_gradients(actual, expected):
    assert all(parameter.grad.abs().max() > 0 for parameter in expected.values())
    for name, parameter in actual.items():
        close(parameter.grad, expected[name].grad)
        first = parameter.grad.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, parameter.grad)  # or the adapters of the processes would drift apart


def check_trains(folder, variant, r, checkpointing=False):
    whole, parts = pair(folder, variant, r=r)
    ids = tokens()
    if checkpointing:
        for model in (whole, parts):
            model.train().get_base_model().gradient_checkpointing_enable()
    losses = [model(ids, labels=ids).loss for model in (whole, parts)]
    close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    check_gradients(adapters(parts), adapters(whole))


@pytest.fixture
def folder(tmp_path):
    """A model whose layers all have a bias, and with an MLP of 44: 22 columns for each process."""
    model = llama(intermediate_size=44, attention_bias=True, mlp_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    return tmp_path


def test_losses_and_gradients_are_those_of_the_whole_model(folder):
    # Blocks of 3 fit nowhere, those of 8 lie across the two parts of an MLP of 44.
    cases = [(folder, variant, r) for variant in ("bone", "bottleneck") for r in (3, 8)]
    cases += [(folder, variant, 2, checkpointing) for variant in ALL_VARIANTS for checkpointing in (False, True)]
    in_two_processes(folder, check_trains, cases)


def check_keeps_step(folder):
    whole, parts = pair(folder, "bone", r=8)
    for model in (whole, parts):
        optimizer = torch.optim.AdamW(adapters(model).values(), lr=1e-2)
        for step in range(3):
            torch.manual_seed(step)
            ids = tokens()
            model(ids, labels=ids).loss.backward()
            torch.nn.utils.clip_grad_norm_(adapters(model).values(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in adapters(parts).items():
        torch.testing.assert_close(parameter, adapters(whole)[name], rtol=1e-3, atol=1e-4)


def test_processes_stay_in_step(folder):
    in_two_processes(folder, check_keeps_step, [(folder,)])


def check_bf16(folder, path):
    from bone_peft.method.ops import dispatch

    whole, parts = pair(folder, "bone", torch.bfloat16, r=2)
    ids = tokens()
    dispatch.forced = path
    whole.float()(ids, labels=ids).loss.backward()
    loss = parts(ids, labels=ids).loss
    loss.backward()
    for name, parameter in adapters(parts).items():
        assert parameter.dtype == torch.float32
        expected = adapters(whole)[name].grad
        assert (parameter.grad - expected).norm() < 0.03 * expected.norm(), name


def test_in_bfloat16_by_every_path(folder):
    in_two_processes(folder, check_bf16, [(folder, path) for path in ("plain", "torch", None)])


def check_merges(folder, variant):
    whole, parts = pair(folder, variant, r=2)
    ids = tokens()
    before = {name: own(tensor).clone() for name, tensor in parts.named_parameters()}
    for mine, layer in zip(layers(parts), layers(whole), strict=True):
        close(mine.get_delta_weight("default"), layer.get_delta_weight("default"))
    expected = whole(ids).logits
    close(parts(ids).logits, expected)
    with parts.disable_adapter(), whole.disable_adapter():
        close(parts(ids).logits, whole(ids).logits)
    parts.merge_adapter()
    close(parts(ids).logits, expected)
    parts.unmerge_adapter()
    assert all(torch.equal(own(parts.get_parameter(name)), tensor) for name, tensor in before.items())
    merged = whole.merge_and_unload().state_dict()
    for name, tensor in parts.merge_and_unload(safe_merge=True).state_dict().items():
        close(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor, merged[name])


def test_merges_and_unmerges(folder):
    in_two_processes(folder, check_merges, [(folder, variant) for variant in ALL_VARIANTS])


def check_starts_the_same(folder):
    torch.manual_seed(dist.get_rank())
    parts = get_peft_model(split(folder), config_for("bottleneck", r=2))
    for parameter in adapters(parts).values():
        first = parameter.detach().clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, parameter)
    if dist.get_rank() == 0:
        parts.save_pretrained(folder / "saved")
    dist.barrier()
    saved = load_file(folder / "saved" / "adapter_model.safetensors")
    shapes = get_peft_model(llama(intermediate_size=44), config_for("bottleneck", r=2)).state_dict()
    assert {tuple(tensor.shape) for tensor in saved.values()} == {
        tuple(tensor.shape) for name, tensor in shapes.items() if ".bone_" in name
    }


def test_random_adapters_start_the_same_and_are_saved_whole_by_one_process(folder):
    in_two_processes(folder, check_starts_the_same, [(folder,)])


def check_several(folder):
    whole, parts = pair(folder, "bone", r=2)
    for model in (whole, parts):
        model.add_adapter("other", config_for("bat", r=2))
        torch.manual_seed(1)
        randomize(model, adapter="other")
    ids = tokens()
    rows = ["default", "other", "__base__"]
    close(parts(ids, adapter_names=rows).logits, whole(ids, adapter_names=rows).logits)
    for model in (whole, parts):
        model.base_model.set_adapter(["other", "default"])
    close(parts(ids).logits, whole(ids).logits)


def test_several_adapters(folder):
    in_two_processes(folder, check_several, [(folder,)])


def check_refused(folder, variant, r, targets, words):
    before = split(folder)
    expected = before(tokens()).logits
    with pytest.raises(BoneError, match=words):
        get_peft_model(before, config_for(variant, r=r, target_modules=targets))
    torch.manual_seed(0)
    assert torch.equal(before(tokens()).logits, expected)


def test_what_cannot_be_cut_is_refused_by_name(folder):
    cases = [
        (folder, "bat", 4, ["down_proj"], r"down_proj: .*along in at 22, within a block of r=4"),
        (folder, "bat-input", 4, ["up_proj"], r"up_proj: .*along out at 22"),
        (
            folder,
            "bone",
            4,
            ["lm_head"],
            "lm_head is a Linear .* split by 'colwise_gather_output'",
        ),
    ]
    in_two_processes(folder, check_refused, cases)


def check_left_out(folder):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 8}
    if dist.get_rank() == 0:
        Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **sizes)).save_pretrained(folder / "experts")
    dist.barrier()
    with pytest.raises(BoneError, match=r"experts\.\w+ is a FusedLinear that tensor parallel has split"):
        get_peft_model(split(folder / "experts"), config_for("bone", r=4, target_modules=["gate_up_proj", "q_proj"]))
    with pytest.warns(UserWarning, match=r"leaves out .*experts\.gate_up_proj"):
        model = get_peft_model(split(folder / "experts"), config_for("bone", r=4, target_modules="all-linear"))
    assert any("q_proj" in name for name in adapters(model))
    assert not any(".experts." in name for name in adapters(model))


def test_experts_are_refused_or_left_out(tmp_path):
    in_two_processes(tmp_path, check_left_out, [(tmp_path,)])


def check_other_plans():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = parallelize_module(
        llama(), init_device_mesh("cpu", (2,)), {"model.layers.*.mlp.up_proj": ColwiseParallel()}
    )
    with pytest.raises(BoneError, match=r"up_proj is split over processes .*no plan of Transformers 5\.17"):
        get_peft_model(model, config_for("bone"))


def test_a_split_of_which_transformers_knows_nothing_is_refused(tmp_path):
    in_two_processes(tmp_path, check_other_plans)


def check_later():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    model = get_peft_model(llama(), config_for("bone"))
    layer = "base_model.model.model.layers.1.mlp.down_proj.base_layer"
    parallelize_module(model, init_device_mesh("cpu", (2,)), {layer: RowwiseParallel()})
    with pytest.raises(BoneError, match=r"1\.mlp\.down_proj was split over processes after it got its adapter"):
        model(tokens())


def test_a_split_after_the_adapter_is_refused(tmp_path):
    in_two_processes(tmp_path, check_later)


def check_sharded_first():
    from torch.distributed.fsdp import fully_shard

    base = fully_shard(llama())
    model = get_peft_model(base, config_for("bone", r=4)).train()
    assert all(tensor.shape[1] in (16, 32, 48) for tensor in adapters(model).values())
    with pytest.raises(BoneError, match="FSDP2 sharded this model before it got its adapter"):
        model(tokens())
    model.eval()(tokens())
    # The Trainer of Transformers averages the gradients of such parameters itself.
    for parameter in adapters(model).values():
        parameter.register_post_accumulate_grad_hook(lambda tensor: dist.all_reduce(tensor.grad))
    model.train()(tokens())


def test_an_adapter_that_fsdp2_does_not_know_of_is_not_trained(tmp_path):
    in_two_processes(tmp_path, check_sharded_first)


def test_an_older_transformers_does_not_tell_and_is_refused(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr("bone_peft.method.compat.tensor_parallel.find_spec", lambda name: None)
    model = llama()
    model._tp_size = 2  # 5.0 to 5.15 leave plain weights that are parts, with nothing that says so
    with pytest.raises(BoneError, match=r"need Transformers 5\.17 or newer"):
        get_peft_model(model, config_for("bone"))
