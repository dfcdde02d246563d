"""The rows of a step in one line: each is computed as it is alone, or the model is not given lines."""

import gc

import pytest
import torch
from peft import get_peft_model
from rich.console import Console
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
from bone_peft.runs import free_memory
from bone_peft.runs.training import checkpointing, compiled_layers, train
from bone_peft.runs.training.completion_loss import SUMS, completion_loss
from bone_peft.runs.training.padding_free import RowsInOneLine, by_rows, fault
from bone_peft.runs.training.padding_free.row_attention import row_attention
from bone_peft.runs.training.trainer import RunTrainer

from ..models import SMALL, config_for, gpt2, llama, opt, randomize
from .test_train import losses, recipe

# Their tokens for the beginning, the end and padding are outside of so small a vocabulary.
TEXT = {**SMALL, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROWS = [[5, 9, 11, 3, 40, 41, 7, 8, 22, 30, 31], [7, 6, 5], [12, 13, 14, 15, 16, 60, 61, 3]]


def mistral():
    return MistralForCausalLM(MistralConfig(**TEXT, sliding_window=4))


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**TEXT))


def gemma2():
    return Gemma2ForCausalLM(Gemma2Config(**TEXT))


def gpt_oss():
    settings = {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2}
    return GptOssForCausalLM(GptOssConfig(**TEXT, **settings))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))


def line(rows, labels=None, most_answers=10**6):
    examples = [{"input_ids": row, "labels": given} for row, given in zip(rows, labels or rows, strict=True)]
    return RowsInOneLine(0, most_answers)(examples)


@pytest.mark.parametrize("make", [llama, gpt2, opt, mistral, qwen3])
def test_loss_and_gradients_of_a_line_are_those_of_its_rows(make):
    torch.manual_seed(0)
    config = config_for("bone", target_modules="all-linear")
    model = randomize(get_peft_model(make(), config), std=0.1).double()
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
    assert float(loss) == pytest.approx(float(alone), rel=1e-5)
    for parameter, grad in zip(trained, want, strict=True):
        assert (parameter.grad - grad).norm() <= 1e-5 * grad.norm()
    assert dict(zip(SUMS, sums.tolist(), strict=True))["answers"] == sum(len(row) - 2 for row in ROWS)


@pytest.mark.parametrize("dtype,near", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("lengths", [[11, 3, 8], [150, 1, 40]])
def test_attention_is_that_of_each_row(dtype, near, window, lengths):
    """Against softmax and products in float64; on a CPU, bfloat16 takes another kernel from 128 tokens on."""
    torch.manual_seed(0)
    tokens = sum(lengths)
    query, key, value = (torch.randn(1, heads, tokens, 8, dtype=dtype) for heads in (4, 2, 2))
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    out, _ = row_attention(
        None, query, key, value, None, sliding_window=window, cu_seq_lens_q=starts, max_length_q=max(lengths)
    )
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(tokens)
    back = place[:, None] - place
    seen = (row[:, None] == row) & (back >= 0) & (back < (window or tokens))
    wide = key.double().repeat_interleave(2, 1), value.double().repeat_interleave(2, 1)
    scores = (query.double() @ wide[0].transpose(-1, -2) / 8**0.5).masked_fill(~seen, float("-inf"))
    want = (scores.softmax(-1) @ wide[1]).transpose(1, 2)
    assert (out.double() - want).norm() <= near * want.norm()


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


@pytest.mark.parametrize("make,why", [(gemma2, "softcap"), (gpt_oss, "s_aux"), (mamba, "borders"), (bloom, "borders")])
def test_models_that_want_more_than_borders(make, why):
    assert why in (fault(make().eval(), ROWS[0], ROWS[2]) or "it takes lines")


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


@pytest.mark.parametrize("padded", [{}, {"training__pad_to_multiple_of": 8}])
def test_packing_is_refused_where_rows_would_see_each_other(plain_base, rows_file, tmp_path, monkeypatch, padded):
    packed = {"training__packing": True, "training__max_length": 64, **padded}
    monkeypatch.setattr("bone_peft.runs.training.step_trainer.fault", lambda *_, **__: "a row sees the one before it")
    with pytest.raises(BoneError, match="cannot share a line"):
        train(recipe(plain_base, rows_file, tmp_path / "run", **packed))


class TestCheckpointing:
    def test_what_is_kept_is_foreseen(self):
        model = get_peft_model(llama(max_position_embeddings=512), config_for("bone"))
        rows = [[3] * 300, [4] * 200]
        batch = line(rows)
        batch.pop("labels"), batch.pop("targets"), batch.pop("logits_to_keep")
        with by_rows(model.get_base_model()):
            kept = checkpointing.saved_bytes(model.eval(), batch)
        assert checkpointing.needed(model, rows[0], [300, 200]) == pytest.approx(kept, rel=0.25)

    def test_nothing_is_left_behind(self):
        """Autograd's nodes of the weights would be on the stream that they were made on for ever."""
        model = get_peft_model(llama(), config_for("bone"))
        checkpointing.needed(model, [3] * 60, [60])
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
        computed_again = []
        original = RunTrainer.train

        def watched(trainer):
            computed_again.append(any(getattr(m, "gradient_checkpointing", False) for m in trainer.model.modules()))
            return original(trainer)

        monkeypatch.setattr(RunTrainer, "train", lambda self, **_: watched(self))
        monkeypatch.setattr(free_memory, "free_bytes", lambda _: free)
        values = recipe(plain_base, rows_file, tmp_path / "run")
        del values.training["gradient_checkpointing"]
        result = train(values, console=Console())
        said = "gradient checkpointing" in capsys.readouterr().out.replace("\n", " ")
        whole = train(recipe(plain_base, rows_file, tmp_path / "whole"))
        assert [said, *computed_again] == [free is not None, free is not None, False]
        assert losses(result) == pytest.approx(losses(whole), rel=1e-5)

    def test_memory_that_is_free(self):
        """Of the machine or of the container, whichever is less."""
        device = torch.device("cpu")
        known = [free for free in (free_memory._of_the_machine(), free_memory._of_the_container()) if free]
        assert free_memory.free_bytes(device) == pytest.approx(min(known), rel=0.2)


class TestCompiled:
    @pytest.fixture
    def plain_compiler(self, monkeypatch):
        compile_layer = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda self, **kw: compile_layer(self, backend="aot_eager", **kw))
        monkeypatch.setattr("bone_peft.runs.training.step_trainer.is_fast", lambda *_: True)
        monkeypatch.setattr("bone_peft.runs.training.step_trainer.StepTrainer._may_record", lambda self: False)
        monkeypatch.setattr(compiled_layers, "pays", lambda *_: True)

    @pytest.mark.slow
    def test_the_same_is_learned(self, plain_base, rows_file, tmp_path, plain_compiler, monkeypatch):
        compiled = []
        original = compiled_layers.compile_layers
        monkeypatch.setattr(compiled_layers, "compile_layers", lambda *a: compiled.append(original(*a)))
        fast = train(recipe(plain_base, rows_file, tmp_path / "fast"))
        assert compiled == [None]
        monkeypatch.setattr(compiled_layers, "pays", lambda *_: False)
        assert losses(fast) == pytest.approx(losses(train(recipe(plain_base, rows_file, tmp_path / "slow"))), rel=1e-5)

    def test_what_is_scored_is_not_compiled(self):
        model = llama()
        assert compiled_layers.compile_layers(model, lambda: None) is None
        layers = compiled_layers.layers_of(model)
        calls = [layer._compiled_call_impl for layer in layers]
        with compiled_layers.set_aside(model):
            assert [layer._compiled_call_impl for layer in layers] == [None] * len(layers)
        assert None not in calls and [layer._compiled_call_impl for layer in layers] == calls

    def test_what_the_compiler_refuses_is_not_compiled(self):
        model = llama()

        def fail():
            raise RuntimeError("no such kernel")

        assert compiled_layers.compile_layers(model, fail) == "no such kernel"
        assert all(layer._compiled_call_impl is None for layer in compiled_layers.layers_of(model))
