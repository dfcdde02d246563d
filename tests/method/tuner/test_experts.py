"""Mixtures of experts: an adapter on a 3-D parameter is what it would be on each expert's own matrices."""

import copy
import pickle

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from torch.func import functional_call
from transformers import JetMoeConfig, JetMoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from bone_peft import BoneConfig, BoneError, BoneLayer
from bone_peft.method.tuner.experts.kinds import kind_of
from bone_peft.method.variants import VARIANTS

from ...models import ALL_VARIANTS, SMALL, config_for, randomize, tokens
from ...versions import needs
from ..variants.reference import DELTA

pytestmark = needs("transformers", "5.0")

EXPERTS, HIDDEN, INNER, R = 5, 16, 12, 4

variants = pytest.mark.parametrize("variant", ALL_VARIANTS)
sharing = pytest.mark.parametrize("experts", ["each", "shared"])
implementations = pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])


class Config:
    """What a module of experts asks of its config."""

    num_experts = num_local_experts = n_routed_experts = moe_num_experts = EXPERTS
    hidden_size = moe_hidden_size = HIDDEN
    intermediate_size = moe_intermediate_size = INNER
    moe_latent_size = None
    hidden_act = mlp_hidden_act = "silu"
    swiglu_alpha, swiglu_limit, post_norm_eps = 1.7, 7.0, 1e-6
    _experts_implementation = "eager"


LAYOUTS = {
    "qwen3_moe": "Qwen3MoeExperts",
    "gpt_oss": "GptOssExperts",  # transposed, gate and up take turns, biases
    "aria": "AriaExperts",  # transposed
    "nemotron_h": "NemotronHExperts",  # no gate
    "muse_spark": "MuseSparkExperts",  # a norm after each expert
    "deepseek_v4": "DeepseekV4Experts",  # a gate of its own
}


def module_of(layout: str) -> nn.Module:
    """The experts of one model, in float64, with values all over."""
    models = pytest.importorskip(f"transformers.models.{layout}.modeling_{layout}")
    cls = getattr(models, LAYOUTS[layout], nn.Identity)
    holder = nn.Module()
    holder.experts = cls(Config())
    if kind_of(holder.experts) is None:
        pytest.skip("this version of Transformers has it another way")
    for parameter in holder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return holder.double()


def adapted(holder: nn.Module, variant: str, **options) -> nn.Module:
    config = config_for(variant, r=R, task_type=None, target_modules="all-linear", **options)
    return randomize(get_peft_model(holder, config), std=0.3).double()


def inputs(number: int = 13, k: int = 2):
    x = torch.randn(number, HIDDEN, dtype=torch.float64, requires_grad=True)
    index = torch.stack([torch.randperm(EXPERTS)[:k] for _ in range(number)])
    index[index == 1] = 0  # Nobody goes there, and some twice to another.
    return x, index, torch.rand(number, k, dtype=torch.float64)


def projections(model: nn.Module) -> dict[str, BoneLayer]:
    return {name.rpartition(".")[2]: m for name, m in model.named_modules() if isinstance(m, BoneLayer)}


def as_matrices(layout: str, weight):
    """The model's parameter as ``(experts, out, in)`` with gate over up, and the way back: in words of its own."""
    transposed, turns = layout in ("gpt_oss", "aria"), layout == "gpt_oss" and weight.shape[2] == 2 * INNER
    plain = weight.transpose(1, 2) if transposed else weight
    if turns:
        plain = torch.cat([plain[:, 0::2], plain[:, 1::2]], 1)

    def back(matrices):
        if turns:
            mixed = torch.empty_like(matrices)
            mixed[:, 0::2], mixed[:, 1::2] = matrices.chunk(2, 1)
            matrices = mixed
        return matrices.transpose(1, 2) if transposed else matrices

    return plain, back


def expected_weights(layout: str, plain: nn.Module, model: nn.Module, variant: str):
    """``W + dW`` for each expert by the formula in NumPy, as the model keeps it."""
    found = {}
    for name, layer in projections(model).items():
        matrices, back = as_matrices(layout, plain.get_parameter(f"experts.{name}").detach())
        params = {k: t.detach().numpy() for k, t in layer._parameters_of("default").items()}
        each = [
            {k: p[e] if len(p) == EXPERTS and p.ndim > VARIANTS_NDIM[variant][k] else p for k, p in params.items()}
            for e in range(EXPERTS)
        ]
        changed = [w.numpy() + DELTA[variant](each[e], w.numpy()) for e, w in enumerate(matrices)]
        found[name] = back(torch.stack([torch.from_numpy(w) for w in changed]))
    return found


VARIANTS_NDIM = {name: {k: len(s) for k, s in v.shapes(R, R, R).items()} for name, v in VARIANTS.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@variants
@sharing
@implementations
def test_layer(layout, variant, experts, implementation, monkeypatch):
    """Output, gradients, and the merged parameter, against the model's own code with each expert's weight changed."""
    plain = module_of(layout)
    model = adapted(copy.deepcopy(plain), variant, experts=experts)
    wanted = expected_weights(layout, plain, model, variant)
    x, *rest = inputs()
    reference = copy.deepcopy(plain)
    for name, weight in wanted.items():
        reference.get_parameter(f"experts.{name}").data = weight.contiguous()
    y = reference.experts(x, *rest)
    (dx,) = torch.autograd.grad(y.square().sum(), x)

    monkeypatch.setattr(Config, "_experts_implementation", implementation)
    got = model.base_model.model.experts(x, *rest)
    single = layout == "muse_spark"  # Its norm is in float32.
    close = {"rtol": 1e-4, "atol": 1e-4} if single else {}
    torch.testing.assert_close(got, y.to(got.dtype), **close)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), x)[0], dx, **close)

    model.merge_adapter()
    for name, layer in projections(model).items():
        torch.testing.assert_close(layer.get_base_layer().weight.detach(), wanted[name])
        torch.testing.assert_close(
            layer.get_delta_weight("default", plain.get_parameter(f"experts.{name}").detach()),
            wanted[name] - plain.get_parameter(f"experts.{name}").detach(),
        )
    model.unmerge_adapter()
    torch.testing.assert_close(model.base_model.model.experts(x, *rest), got, rtol=0, atol=0)
    back = model.unload()
    assert [n for n, _ in back.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert all(torch.equal(p, q) for p, q in zip(back.parameters(), plain.parameters(), strict=True))
    assert type(back.experts) is type(plain.experts)


@variants
@sharing
@implementations
def test_gradients_of_the_adapter(variant, experts, implementation, monkeypatch):
    """Against autograd through the merged weight of each expert."""
    plain = module_of("gpt_oss")
    model = adapted(copy.deepcopy(plain), variant, experts=experts)
    x, *rest = inputs()
    weights, params = {}, []
    for name, layer in projections(model).items():
        matrices, back = as_matrices("gpt_oss", plain.get_parameter(f"experts.{name}").detach())
        own = layer._parameters_of("default")
        params += own.values()
        one = [{k: p if experts == "shared" else p[e] for k, p in own.items()} for e in range(EXPERTS)]
        deltas = [VARIANTS[variant].delta_weight(p, w) for p, w in zip(one, matrices, strict=True)]
        weights[f"{name}"] = back(matrices + torch.stack(deltas))
    y = functional_call(plain.experts, weights, (x, *rest))
    expected = torch.autograd.grad(y.square().sum(), params)

    monkeypatch.setattr(Config, "_experts_implementation", implementation)
    got = torch.autograd.grad(model.base_model.model.experts(x, *rest).square().sum(), params)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


QWEN = {**SMALL, "moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 2, "head_dim": 8}
IDS = tokens()


def qwen(**kwargs):
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**QWEN, **kwargs})).eval()


def logits(model, ids=IDS, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


def tuned(variant="bone", base=None, **options):
    options = {"target_modules": "all-linear", **options}
    return randomize(get_peft_model(qwen() if base is None else base, config_for(variant, **options))).eval()


def adapted_names(model):
    return {name.removeprefix("base_model.model.model.layers.0.") for name in layer_names(model) if ".0." in name}


def layer_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, BoneLayer)]


ATTENTION = {f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
FUSED = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({"target_modules": "all-linear"}, ATTENTION | FUSED),
        ({"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}, {"self_attn.q_proj", *FUSED}),
        ({"target_modules": ["w1", "w2", "w3"]}, FUSED),
        ({"target_modules": r".*\.experts\.\d+\.(gate|up|down)_proj"}, FUSED),
        ({"target_modules": r".*\.experts\.(gate_up|down)_proj"}, FUSED),
        ({"target_modules": ["down_proj"]}, {"mlp.experts.down_proj"}),
        ({"target_modules": "all-linear", "exclude_modules": ["gate_up_proj"]}, ATTENTION | {"mlp.experts.down_proj"}),
        ({"target_modules": None, "target_parameters": ["experts.gate_up_proj"]}, {"mlp.experts.gate_up_proj"}),
        (
            {"target_modules": ["q_proj"], "target_parameters": ["down_proj"]},
            {"self_attn.q_proj", "mlp.experts.down_proj"},
        ),
        ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, {"self_attn.q_proj"}),
    ],
)
def test_targets(targets, expected, recwarn):
    assert adapted_names(get_peft_model(qwen(), config_for("bone", **targets))) == expected
    assert not [str(w.message) for w in recwarn if "were set but no" in str(w.message)]


def test_half_of_a_fused_projection():
    with pytest.warns(
        UserWarning, match=r"mlp\.experts\.gate_up_proj \(is gate_proj and up_proj in one, and only up_proj"
    ):
        model = get_peft_model(qwen(), config_for("bone", target_modules=["q_proj", "up_proj"]))
    assert adapted_names(model) == {"self_attn.q_proj"}


def test_rank_patterns():
    both = {"gate_proj": 4, "up_proj": 4, "down_proj": 2}
    model = get_peft_model(qwen(), config_for("bone", target_modules="all-linear", rank_pattern=both))
    rows = {
        name.rpartition(".")[2]: m.bone_r["default"] for name, m in model.named_modules() if isinstance(m, BoneLayer)
    }
    assert (rows["gate_up_proj"], rows["down_proj"], rows["q_proj"]) == (4, 2, 8)
    with pytest.raises(BoneError, match=r"gate_up_proj.* gate_proj 4, up_proj 8"):
        get_peft_model(qwen(), config_for("bone", rank_pattern={"gate_proj": 4, "up_proj": 8}))


@variants
@sharing
def test_saved_and_loaded(variant, experts, tmp_path):
    base = qwen()
    live = tuned(variant, copy.deepcopy(base), experts=experts)
    live.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(live))
    assert not torch.equal(logits(again), logits(base))
    cheap = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, low_cpu_mem_usage=True).eval()
    torch.testing.assert_close(logits(cheap), logits(live))
    other = qwen(num_experts=4)
    if experts == "each":
        with pytest.raises(Exception, match="size mismatch"):
            PeftModel.from_pretrained(other, tmp_path)


@variants
def test_several_adapters(variant, tmp_path):
    """Switched, mixed by row, off, added, deleted: each gives what it gives alone."""
    base = qwen()
    model = get_peft_model(copy.deepcopy(base), config_for(variant, target_modules="all-linear"), adapter_name="a")
    model.add_adapter("b", config_for("bone", r=4, target_modules=["down_proj"], experts="shared"))
    randomize(model).eval()
    alone = {}
    for name in "ab":
        model.set_adapter(name)
        alone[name] = logits(model)
    model.base_model.set_adapter(["a", "b"])
    both = logits(model)
    rows = logits(model, adapter_names=["a", "__base__", "b"])
    for row, expected in enumerate([alone["a"], logits(base), alone["b"]]):
        torch.testing.assert_close(rows[row], expected[row], rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base))
    model.merge_adapter()
    torch.testing.assert_close(logits(model), both, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits(model), both)
    model.base_model.add_weighted_adapter(["a"], [0.5], "half")
    model.delete_adapter("b")
    model.set_adapter("a")
    assert torch.equal(logits(model), alone["a"])
    model.set_adapter("half")
    halved = [m for m in model.modules() if isinstance(m, BoneLayer)]
    for layer in halved:
        torch.testing.assert_close(layer.get_delta_weight("half"), 0.5 * layer.get_delta_weight("a"))
    assert len(halved) == 12 and not torch.equal(logits(model), alone["a"])


def test_hot_swap(tmp_path):
    base = qwen()
    first, second = tuned("bone", copy.deepcopy(base)), tuned("bone", copy.deepcopy(base))
    second.save_pretrained(tmp_path / "second")
    hotswap_adapter(first, tmp_path / "second", adapter_name="default")
    torch.testing.assert_close(logits(first), logits(second))


def test_copies_and_pickles():
    model = tuned("bat-input")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(logits(other), logits(model))
        randomize(other)
        assert not torch.equal(logits(other), logits(model))


@variants
def test_checkpointing_and_training_change_nothing(variant):
    gradients = []
    torch.manual_seed(0)
    base = qwen()
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = tuned(variant, copy.deepcopy(base)).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        model(IDS, labels=IDS).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(".bone_" in name for name in gradients[0]) and any("experts" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
        assert gradient.abs().max() > 0, name


@implementations
def test_the_implementation_is_followed(implementation):
    model = tuned("bone")
    expected = logits(model)
    model.set_experts_implementation(implementation)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert not hasattr(type(model.config), "bone") and model.config._experts_implementation == implementation
    assert "experts_implementation" not in model.config.to_json_string()


def test_an_implementation_that_has_kernels_of_its_own():
    model = tuned("bone")
    model.config._experts_implementation = "sonicmoe"
    with pytest.raises(BoneError, match=r"set to sonicmoe: call model\.set_experts_implementation"):
        logits(model)


def test_generation():
    model = tuned("bone")
    merged = copy.deepcopy(model).merge_and_unload()
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, **options), merged.generate(IDS, **options))


@pytest.mark.parametrize("variant", ["bone", "bat-input", "bottleneck"])
def test_dropout(variant):
    option = "bottleneck_dropout" if variant == "bottleneck" else "bone_dropout"
    model = tuned(variant, **{option: 0.5})
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_what_does_not_fit():
    with pytest.raises(BoneError, match=r"experts.gate_up_proj: Bat needs r to divide .* r=16 does not divide 24 x 32"):
        get_peft_model(qwen(), config_for("bat", r=16, target_modules=["gate_up_proj"]))
    with pytest.raises(BoneError, match="experts has to be one of 'each', 'shared', and it is 'all'"):
        BoneConfig(experts="all")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_keep_float32_adapters(dtype):
    model = tuned("bone", qwen().to(dtype))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model).dtype == dtype and logits(model).isfinite().all()
    model.train()
    model(IDS, labels=IDS).loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@variants
@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_compiled(variant, implementation):
    """Without a break: the compiler sees the whole of a layer's experts."""
    model = tuned(variant, qwen(num_hidden_layers=1), target_modules=["gate_up_proj", "down_proj"]).train()
    model.set_experts_implementation(implementation)
    experts = model.base_model.model.model.layers[0].mlp.experts
    torch._dynamo.reset()
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
    x = torch.randn(9, 32, requires_grad=True)
    index, weights = torch.stack([torch.randperm(6)[:2] for _ in range(9)]), torch.rand(9, 2)
    params = [p for p in experts.parameters() if p.requires_grad]
    results = []
    for run in (experts, compiled):
        y = run(x, index, weights)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *params])))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@needs("transformers", "5.17")
def test_transformers_own_load_adapter(tmp_path):
    base = qwen()
    live = tuned("bone", copy.deepcopy(base))
    live.save_pretrained(tmp_path)
    other = copy.deepcopy(base)
    other.load_adapter(tmp_path)
    torch.testing.assert_close(logits(other.eval()), logits(live))


@variants
def test_nothing_of_the_size_of_the_weights_is_kept(variant):
    """For backward: of a layout that has to be turned round, too."""
    plain = module_of("gpt_oss").float()
    model = adapted(plain, variant).float()
    x, *rest = inputs()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model.base_model.model.experts(x.float().detach().requires_grad_(), *rest)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = [t.numel() for t in kept if t.untyped_storage().data_ptr() not in own]
    assert max(sizes) < EXPERTS * HIDDEN * 2 * INNER


@variants
def test_models_that_accelerate_has_placed(variant):
    base = qwen()
    expected = tuned(variant, copy.deepcopy(base))
    placed = dispatch_model(copy.deepcopy(base), {"": "cpu"}, force_hooks=True)
    model = get_peft_model(placed, config_for(variant, target_modules="all-linear")).eval()
    model.load_state_dict({k: v for k, v in expected.state_dict().items() if ".bone_" in k}, strict=False)
    torch.testing.assert_close(logits(model), logits(expected))
    torch.testing.assert_close(logits(model.unload()), logits(base))


def test_experts_that_are_offloaded():
    placed = cpu_offload(qwen())
    with pytest.raises(BoneError, match=r"experts\.gate_up_proj is offloaded, and Bone adapts experts that stay"):
        get_peft_model(placed, config_for("bone", target_modules=["gate_up_proj"]))


def test_experts_in_eight_bits():
    model = qwen()
    for layer in model.model.layers:
        layer.mlp.experts.down_proj.data = layer.mlp.experts.down_proj.data.to(torch.float8_e4m3fn)
    with pytest.raises(BoneError, match=r"experts\.down_proj holds its experts as float8_e4m3fn, and Bone adapts"):
        get_peft_model(model, config_for("bone", target_modules=["down_proj"]))


def test_stacks_of_another_kind():
    model = JetMoeForCausalLM(
        JetMoeConfig(**{**SMALL, "num_local_experts": 4, "kv_channels": 8, "num_key_value_heads": 2})
    )
    with pytest.warns(UserWarning, match=r"input_linear\.weight.*is a stack of matrices of a JetMoeParallelExperts"):
        get_peft_model(copy.deepcopy(model), config_for("bone", target_modules="all-linear"))
    with pytest.raises(BoneError, match=r"input_linear\.weight is a stack of matrices of a JetMoeParallelExperts"):
        get_peft_model(model, config_for("bone", target_modules=[], target_parameters=["input_linear.weight"]))
