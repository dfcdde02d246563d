"""Layers whose weight the model reads, layers that are no linear layers after all, and layers that nothing reaches."""

import copy
import pickle
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from bone_peft import BoneConfig, BoneError
from bone_peft.method.tuner.targets import Use, use_of

from ...models import ALL_VARIANTS, config_for, llama, randomize
from ...versions import needs

variants = pytest.mark.parametrize("variant", ALL_VARIANTS)


def config(variant, targets, task_type=None, **options):
    return config_for(variant, target_modules=targets, task_type=task_type, **options)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Reader(nn.Module):
    """Multiplies by a weight that it takes out of the layer, as Mamba does."""

    def __init__(self):
        super().__init__()
        self.project, self.mix = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        if self.mix.weight.dtype != x.dtype:
            x = x.to(self.mix.weight.dtype)
        return nn.functional.linear(self.mix(x), self.project.weight, self.project.bias)


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), 2)


MODELS = {
    "MultiheadAttention": (Attention, ["out_proj"]),
    "MultiheadAttention whole": (Attention, ["attention"]),
    "a weight that is read": (Reader, ["project"]),
    "TransformerEncoder": (encoder, ["linear1", "linear2", "out_proj"]),
    "TransformerEncoder whole": (encoder, ["linear1", "linear2", "self_attn"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MODELS)
@variants
def test_an_adapter_on_a_weight_that_is_read_counts(variant, kind):
    make, targets = MODELS[kind]
    x = torch.randn(2, 5, 32)
    model = get_peft_model(make(), config(variant, targets))
    plain = model(x).detach()
    randomize(model)
    for mode in (True, False):
        model.train(mode)
        live = model(x)
        trained = {name: p for name, p in model.named_parameters() if ".bone_" in name}
        for name, gradient in zip(
            trained, torch.autograd.grad(live.square().sum(), list(trained.values())), strict=True
        ):
            assert gradient.any(), name
        assert (live - plain).abs().max() > 1e-4
    with torch.no_grad():
        torch.testing.assert_close(model(x), live, atol=1e-5, rtol=1e-5)
        with model.disable_adapter():
            torch.testing.assert_close(model(x), plain, atol=1e-5, rtol=1e-5)
        model.merge_adapter()
        torch.testing.assert_close(model(x), live, atol=1e-5, rtol=1e-5)
        model.unmerge_adapter()
        torch.testing.assert_close(model(x), live, atol=1e-5, rtol=1e-5)


@variants
def test_multihead_attention_is_what_it_was_once_it_is_merged(variant, tmp_path):
    base = Attention()
    bare = copy.deepcopy(base)
    x = torch.randn(2, 5, 32)
    model = get_peft_model(base, config(variant, ["attention"])).eval()
    adapted = {name.split(".bone_")[0].split(".")[-1] for name, _ in model.named_parameters() if ".bone_" in name}
    assert adapted == {"in_proj", "out_proj"}
    randomize(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path, low_cpu_mem_usage=True)
    again.add_adapter("second", config(variant, ["attention"]))
    again.delete_adapter("second")
    with torch.no_grad():
        live = model(x)
        torch.testing.assert_close(again(x), live)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(x), live, atol=1e-5, rtol=1e-5)
    assert list(merged.state_dict()) == list(bare.state_dict())
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in bare.named_parameters()]
    assert type(merged.attention) is nn.MultiheadAttention
    unloaded = again.unload()
    for name, tensor in bare.state_dict().items():
        assert torch.equal(unloaded.state_dict()[name], tensor), name


def test_multihead_attention_of_several_sizes_is_refused():
    base = nn.Sequential(nn.MultiheadAttention(32, 4, kdim=16), nn.Linear(32, 32))
    with pytest.raises(BoneError, match=r"0 is a MultiheadAttention, .* one size"):
        get_peft_model(base, config("bone", ["0", "1"]))
    assert type(base[1]) is nn.Linear


def test_a_refused_attention_is_what_it_was():
    base = nn.Sequential(nn.MultiheadAttention(32, 4), nn.Conv2d(3, 3, 3))
    names = list(base.state_dict())
    with pytest.raises(BoneError, match="1 is a Conv2d"):
        get_peft_model(base, config("bone", ["0", "1"]))
    assert type(base[0]) is nn.MultiheadAttention
    assert list(base.state_dict()) == names


def mamba():
    return MambaForCausalLM(
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=8)
    )


@variants
def test_mamba(variant, tmp_path):
    base, ids = mamba(), torch.randint(3, 64, (2, 9))
    model = randomize(get_peft_model(base, config(variant, "all-linear")))
    model(input_ids=ids, labels=ids).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.any()] == []
    live = model.eval()(ids).logits
    model.merge_adapter()
    torch.testing.assert_close(model(ids).logits, live, atol=1e-5, rtol=1e-5)


class Selecting(nn.Module):
    """Chooses what to attend to, and does not learn to, as DeepSeek's indexer."""

    def __init__(self):
        super().__init__()
        self.score, self.rank, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)

    @torch.no_grad()
    def choose(self, x):
        return self.score(x) > 0

    def forward(self, x):
        with torch.no_grad():
            ranks = self.rank(x) * self.choose(x)
        return self.value(x) * ranks


def test_layers_without_autograd_learn_nothing():
    assert [use_of(Selecting(), name).learns for name in ("score", "rank", "value")] == [False, False, True]
    with pytest.warns(UserWarning, match=r"leaves out 2 layers of this model: score, rank \(this model comp"):
        model = get_peft_model(Selecting(), config("bone", "all-linear"))
    model(torch.randn(2, 32)).sum().backward()
    with pytest.raises(BoneError, match="score: this model computes it without autograd"):
        get_peft_model(Selecting(), config("bone", ["score", "value"]))


def test_what_the_code_of_a_model_tells():
    assert use_of(nn.MultiheadAttention(32, 4), "out_proj") == Use(read=True, called=False)
    assert use_of(nn.TransformerEncoderLayer(32, 4), "linear1") == Use(read=True, called=True)
    assert use_of(mamba().backbone.layers[0].mixer, "in_proj") == Use(read=False, called=True)
    assert use_of(Reader(), "mix") == Use(read=False, called=True)  # Its dtype alone is asked for.
    assert use_of(nn.Sequential(nn.Linear(2, 2)), "0") == Use(read=False, called=True)


@needs("transformers", "5.0")  # Before, its slow path calls the layer.
def test_what_the_code_of_mamba_tells():
    assert use_of(mamba().backbone.layers[0].mixer, "dt_proj") == Use(read=True, called=False)


def test_t5_asks_for_a_dtype_and_computes_no_weight(monkeypatch):
    settings = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    model = get_peft_model(T5ForConditionalGeneration(T5Config(vocab_size=64, **settings)), config("bone", ["wo"]))
    variant = model.base_model.model.encoder.block[0].layer[1].DenseReluDense.wo.bone_variant["default"]
    monkeypatch.setattr(variant, "delta_weight", lambda *_: pytest.fail("no weight is needed here"))
    ids = torch.randint(3, 64, (2, 9))
    model(input_ids=ids, labels=ids).loss.backward()


def test_what_cannot_be_with_a_weight_that_is_read():
    with pytest.raises(BoneError, match=r"project: the model reads .* no input to drop: set bone_dropout to 0"):
        get_peft_model(Reader(), config("bone", ["project"], bone_dropout=0.1))
    model = get_peft_model(Reader(), config("bone", ["project"])).eval()
    with pytest.raises(BoneError, match=r"project: .* one weight cannot be each row's own"):
        model(torch.randn(2, 32), adapter_names=["default", "__base__"])


class Hidden(nn.Module):
    """Reads a weight by a way that its code does not tell."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        for name, child in self.named_children():
            x = child(x) if name == "first" else x @ child.weight.T
        return x


@pytest.mark.parametrize("train", [True, False])
def test_the_first_run_finds_what_nothing_told(train):
    model = get_peft_model(Hidden(), config("bone", "all-linear")).train(train)
    with pytest.raises(BoneError, match=r"reads the weight of second without calling the layer, so the adapter there"):
        model(torch.randn(2, 32))
    model = get_peft_model(Hidden(), config("bone", "all-linear", exclude_modules=["second"]))
    model(torch.randn(2, 32))
    assert not any("_PASSED_BY" in str(key) for module in model.modules() for key in module._forward_hooks)


class Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            ctx.layer(x).backward(gradient)
        return x.grad, None


class Reversing(nn.Module):
    """Learns, and what is before its head learns only where the input of it does, as in Reformer."""

    is_gradient_checkpointing = False

    def __init__(self):
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(8, 32), nn.Linear(32, 32), nn.Linear(32, 32)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, ids):
        return self.head(Reversible.apply(self.embedding(ids), self.layer))


def test_the_first_training_finds_what_has_no_gradient():
    ids = torch.tensor([[1, 2, 3]])
    model = get_peft_model(Reversing(), config("bone", "all-linear"))
    model.eval()(ids)
    with torch.no_grad():
        model.train()(ids)
    copy.deepcopy(model)
    pickle.dumps(model.base_model.model._forward_hooks)
    with pytest.raises(BoneError, match=r"No gradient reaches the adapter of layer: .*enable_input_require_grads"):
        model(ids)

    model = get_peft_model(Reversing(), config("bone", "all-linear"))
    model.embedding.register_forward_hook(lambda _, __, output: output.requires_grad_())
    model(ids).sum().backward()
    assert all(p.grad.any() for name, p in model.named_parameters() if ".bone_" in name)
    assert not any("_FIRST" in str(key) for module in model.modules() for key in module._forward_hooks)


def test_a_layer_that_is_trained_whole_has_no_adapter(tmp_path):
    settings = DistilBertConfig(vocab_size=64, dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    with pytest.warns(UserWarning, match=r"pre_classifier \(is trained whole, since its name ends with 'classifier'"):
        model = get_peft_model(
            DistilBertForSequenceClassification(settings), config("bone", "all-linear", task_type="SEQ_CLS")
        )
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(DistilBertForSequenceClassification(settings), tmp_path)
    with pytest.raises(BoneError, match="pre_classifier is trained whole"):
        get_peft_model(
            DistilBertForSequenceClassification(settings),
            config("bone", ["pre_classifier"], task_type="SEQ_CLS"),
        )


def test_a_model_without_embeddings_saves_the_adapter_of_its_head(tmp_path):
    settings = Wav2Vec2Config(
        vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=[32], conv_kernel=[3], conv_stride=[2], num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    base = Wav2Vec2ForCTC(settings)
    model = get_peft_model(copy.deepcopy(base), config("bone", ["lm_head", "q_proj"])).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base, tmp_path).eval()
    x = torch.randn(1, 200)
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, model(x).logits)


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class Grouped(nn.Linear):
    def forward(self, x):
        return torch.einsum("...gi,goi->...go", x.unflatten(-1, (2, -1)), self.weight.unflatten(0, (2, -1)))


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Cast(nn.Linear):
    """Own code, and a linear layer all the same."""

    def forward(self, x):
        return nn.functional.linear(x.float(), self.weight.float(), self.bias).to(x.dtype)


@pytest.mark.parametrize("odd", [Pair, Grouped, Scaled])
def test_linear_in_name_only(odd, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain, self.odd = nn.Linear(32, 32), odd(32, 32)

        def forward(self, x):
            return self.plain(x)

    with pytest.raises(BoneError, match=rf"odd is a {odd.__name__}, which computes something else than a linear layer"):
        get_peft_model(Net(), config("bone", ["plain", "odd"]))
    with pytest.warns(UserWarning, match=rf"Bone leaves out 1 layers of this model: odd \(is a {odd.__name__}, which"):
        model = randomize(get_peft_model(Net(), config("bone", "all-linear")))
    assert model.peft_config["default"].exclude_modules == {"odd"} and model.targeted_module_names == ["plain"]
    x = torch.randn(2, 32)
    model.save_pretrained(tmp_path)
    base = Net()
    base.load_state_dict(model.unload().state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = PeftModel.from_pretrained(base, tmp_path)
    assert "plain" in str(again.targeted_module_names) and again(x).shape == (2, 32)


def test_own_code_that_computes_a_linear_layer():
    model = randomize(get_peft_model(nn.Sequential(Cast(32, 32)), config("bone", ["0"])))
    x = torch.randn(2, 32)
    live = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), live, atol=1e-5, rtol=1e-5)


def test_llama_4_whose_router_gives_two_tensors():
    small = {"hidden_size": 32, "intermediate_size": 32, "intermediate_size_mlp": 48, "num_hidden_layers": 2}
    settings = Llama4TextConfig(
        vocab_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2, **small
    )
    with pytest.warns(UserWarning, match=r"model\.layers\.\*\.feed_forward\.router \(is a Llama4Router, which"):
        model = get_peft_model(Llama4ForCausalLM(settings), config("bone", "all-linear"))
    ids = torch.randint(3, 64, (2, 9))
    model(input_ids=ids, labels=ids).loss.backward()


def test_bat_passes_by_a_layer_that_r_does_not_divide(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.big, self.gate = nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, x):
            return self.gate(self.big(x))

    with pytest.warns(UserWarning, match=r"leaves out 1 layers .* gate \(Bat needs r to divide both sides"):
        model = get_peft_model(Net(), config("bat", "all-linear"))
    assert model.targeted_module_names == ["big"]
    with pytest.raises(BoneError, match="gate: Bat needs r to divide both sides"):
        get_peft_model(Net(), config("bat", ["big", "gate"]))
    with pytest.raises(BoneError, match=r"No layer of this model can be adapted so: .*Bat needs r"):
        get_peft_model(nn.Sequential(nn.Linear(32, 4)), config("bat", "all-linear"))


@pytest.mark.parametrize("exclude", [None, ["k_proj"], r".*\.k_proj"])
def test_what_is_passed_by_joins_what_is_excluded(exclude):
    model = llama()
    model.model.layers[1].self_attn.q_proj = Pair(32, 32)
    with pytest.warns(UserWarning, match="self_attn.q_proj"):
        tuned = get_peft_model(model, config("bone", "all-linear", exclude_modules=exclude))
    assert "model.layers.1.self_attn.q_proj" not in tuned.targeted_module_names
    assert any("k_proj" in name for name in tuned.targeted_module_names) == (exclude is None)
    again = get_peft_model(llama(), BoneConfig(**{**tuned.peft_config["default"].to_dict(), "peft_type": "BONE"}))
    assert again.targeted_module_names == tuned.targeted_module_names


@pytest.mark.parametrize("targets", [None, "all-linear", ["key", "value"]])
def test_rwkv_4_which_rescales_its_weights(targets):
    def model():
        return RwkvForCausalLM(RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=8, context_length=64))

    ids = torch.randint(3, 64, (2, 9))
    if targets is not None and targets != "all-linear":
        with pytest.raises(BoneError, match=r"feed_forward\.value is a .* set model\.config\.rescale_every = 0 first"):
            get_peft_model(model(), config("bone", targets))
        base = model()
        base.config.rescale_every = 0
        tuned = get_peft_model(base, config("bone", targets))
    else:
        with pytest.warns(UserWarning, match=r"rwkv\.blocks\.\*\.feed_forward\.value"):
            tuned = get_peft_model(model(), BoneConfig(r=8, target_modules=targets))
    randomize(tuned)
    with torch.no_grad():
        torch.testing.assert_close(tuned.train()(ids).logits, tuned.eval()(ids).logits, atol=1e-3, rtol=1e-3)
