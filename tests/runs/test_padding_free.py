"""The rows of a step in one line: each is computed as it is alone, or the model is not given lines."""

import gc

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bone_peft.errors import BoneError
from bone_peft.runs.training import checkpointing, compiled_layers, train
from bone_peft.runs.training.completion_loss import SUMS, completion_loss
from bone_peft.runs.training.padding_free import RowsInOneLine, by_rows, fault

from ..models import config_for, gpt2, llama, opt, randomize
from .test_train import losses, recipe

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROWS = [[5, 9, 11, 3, 40, 41, 7, 8, 22, 30, 31], [7, 6, 5], [12, 13, 14, 15, 16, 60, 61, 3]]


def mistral():
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4))


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**SMALL))


def gemma2():
    return Gemma2ForCausalLM(Gemma2Config(**SMALL))


def gpt_oss():
    settings = {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2}
    return GptOssForCausalLM(GptOssConfig(**SMALL, **settings))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))


def line(rows, labels=None, most_answers=10**6):
    examples = [{"input_ids": row, "labels": given} for row, given in zip(rows, labels or rows, strict=True)]
    return RowsInOneLine(0, most_answers)(examples)


@pytest.mark.parametrize("make", [llama, gpt2, mistral, qwen3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_loss_and_gradients_of_a_line_are_those_of_its_rows(make, dtype):
    torch.manual_seed(0)
    config = config_for("bone", target_modules="all-linear")
    model = randomize(get_peft_model(make(), config), std=0.1).to(dtype)
    base = model.get_base_model()
    assert fault(base, ROWS[0], ROWS[2]) is None
    labels = [[-100, -100, *row[2:]] for row in ROWS]
    alone = sum(
        model(input_ids=torch.tensor([r]), labels=torch.tensor([a])).loss * (len(r) - 2)
        for r, a in zip(ROWS, labels, strict=True)
    )
    alone.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    want = [parameter.grad.clone() for parameter in trained]
    model.zero_grad()
    with by_rows(base):
        loss, sums = completion_loss(model, line(ROWS, labels), wanted=True)
    loss.backward()
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.3}
    torch.testing.assert_close(loss.double(), alone.double(), **near)
    for parameter, grad in zip(trained, want, strict=True):
        assert (parameter.grad - grad).norm() <= (1e-5 if dtype == torch.float64 else 0.1) * grad.norm()
    assert dict(zip(SUMS, sums.tolist(), strict=True))["answers"] == sum(len(row) - 2 for row in ROWS)


def test_what_is_said_of_the_answers():
    model = llama()
    labels = [[-100, *row[1:]] for row in ROWS]
    logits = torch.cat([model(torch.tensor([row])).logits[0, :-1] for row in ROWS])
    targets = torch.cat([torch.tensor(row[1:]) for row in ROWS])
    p = logits.double().softmax(-1)
    with by_rows(model):
        _, sums = completion_loss(model, line(ROWS, labels), wanted=True)
    want = [float(-(p * p.log()).sum()), int((logits.argmax(-1) == targets).sum()), len(targets)]
    assert sums.tolist() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    "make,why", [(gemma2, "softcap"), (gpt_oss, "s_aux"), (mamba, "borders"), (bloom, "borders"), (opt, "")]
)
def test_models_that_want_more_than_borders(make, why):
    """Either they are told apart, or they are right."""
    found = fault(make().eval(), ROWS[0], ROWS[2])
    assert found is not None or why == ""
    assert why in (found or "")


def test_a_model_that_lets_rows_see_each_other():
    class Leaky(nn.Module):
        def forward(self, x):
            return x + x.cumsum(1) * 0.1

    model = llama()
    model.model.layers[0].mlp = nn.Sequential(model.model.layers[0].mlp, Leaky())
    assert fault(model, ROWS[0], ROWS[2]) == "a row sees the one before it"


def test_a_padded_batch_is_what_it_was():
    model = llama().eval()
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]]),
        "attention_mask": torch.tensor([[1] * 4, [0, 0, 1, 1]]),
    }
    want = model(**batch).logits
    with by_rows(model):
        assert torch.equal(model(**batch).logits, want)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_learns_what_it_learns_with_padding(plain_base, rows_file, tmp_path, accumulation):
    options = {"training__gradient_accumulation_steps": accumulation}
    lines = train(recipe(plain_base, rows_file, tmp_path / "lines", **options))
    padded = train(recipe(plain_base, rows_file, tmp_path / "padded", training__pad_to_multiple_of=1, **options))
    assert losses(lines) == pytest.approx(losses(padded), rel=1e-4)


def test_a_packed_run_learns_rows_one_by_one(plain_base, rows_file, tmp_path):
    """All rows in one step, packed or not."""
    whole = train(recipe(plain_base, rows_file, tmp_path / "rows", training__per_device_train_batch_size=24))
    packed = train(
        recipe(
            plain_base,
            rows_file,
            tmp_path / "packs",
            training__packing=True,
            training__max_length=64,
            training__per_device_train_batch_size=24,
        )
    )
    assert losses(packed)[0] == pytest.approx(losses(whole)[0], rel=1e-4)


def test_packing_is_refused_where_rows_would_see_each_other(plain_base, rows_file, tmp_path, monkeypatch):
    monkeypatch.setattr("bone_peft.runs.training.trainer.fault", lambda *_, **__: "a row sees the one before it")
    with pytest.raises(BoneError, match="cannot share a line"):
        train(recipe(plain_base, rows_file, tmp_path / "run", training__packing=True, training__max_length=64))


class TestCheckpointing:
    def test_what_is_kept_is_foreseen(self):
        model = get_peft_model(llama(max_position_embeddings=512), config_for("bone"))
        rows = [[3] * 300, [4] * 200]
        batch = line(rows)
        batch.pop("labels"), batch.pop("targets"), batch.pop("logits_to_keep")
        with by_rows(model.get_base_model()):
            kept = checkpointing.saved_bytes(model.eval(), batch)
        assert checkpointing.needed(model, [300, 200]) == pytest.approx(kept, rel=0.25)

    def test_nothing_is_left_behind(self):
        """Autograd's nodes of the weights would be on the stream that they were made on for ever."""
        model = get_peft_model(llama(), config_for("bone"))
        checkpointing.needed(model, [60])
        gc.collect()
        trained = next(parameter for parameter in model.parameters() if parameter.requires_grad)

        def node():
            return trained.view_as(trained).grad_fn.next_functions[0][0]

        node().metadata["kept"] = True  # gone with the node, unless a graph still holds it
        assert "kept" not in node().metadata

    @pytest.mark.parametrize("free", [None, 10**5])
    def test_it_is_switched_on_where_a_step_does_not_fit(
        self, plain_base, rows_file, tmp_path, monkeypatch, capsys, free
    ):
        from rich.console import Console

        monkeypatch.setattr(checkpointing, "free_bytes", lambda _: free)
        values = recipe(plain_base, rows_file, tmp_path / "run")
        del values.training["gradient_checkpointing"]
        result = train(values, console=Console())
        said = "gradient checkpointing" in capsys.readouterr().out.replace("\n", " ")
        assert said == (free is not None)
        assert losses(result) == pytest.approx(
            losses(train(recipe(plain_base, rows_file, tmp_path / "whole"))), rel=1e-5
        )


class TestCompiled:
    @pytest.fixture
    def plain_compiler(self, monkeypatch):
        compile_layer = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda self, **kw: compile_layer(self, backend="aot_eager", **kw))
        monkeypatch.setattr("bone_peft.runs.training.trainer.is_fast", lambda *_: True)
        monkeypatch.setattr(compiled_layers, "pays", lambda *_: True)

    def test_the_same_is_learned(self, plain_base, rows_file, tmp_path, plain_compiler, monkeypatch):
        compiled = []
        original = compiled_layers.compile_layers
        monkeypatch.setattr(compiled_layers, "compile_layers", lambda *a: compiled.append(original(*a)))
        fast = train(recipe(plain_base, rows_file, tmp_path / "fast"))
        assert len(compiled) == 1
        monkeypatch.setattr(compiled_layers, "pays", lambda *_: False)
        assert losses(fast) == pytest.approx(losses(train(recipe(plain_base, rows_file, tmp_path / "slow"))), rel=1e-5)

    def test_what_the_compiler_refuses_is_not_compiled(self, monkeypatch):
        model = llama()

        def fail():
            raise RuntimeError("no such kernel")

        assert compiled_layers.compile_layers(model, fail) == "no such kernel"
        assert all(layer._compiled_call_impl is None for layer in compiled_layers.layers_of(model))
