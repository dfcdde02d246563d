"""``train``: what it learns from, what it leaves behind, what it refuses."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from bone_peft.errors import BoneError
from bone_peft.runs.data import load_data
from bone_peft.runs.evaluation.tokens import encode
from bone_peft.runs.training import Recipe, train
from bone_peft.runs.training.run_folder import RunFolder

from .tiny import make_base, sums, write_rows


def recipe(base, rows, out, **values):
    return Recipe(base=base, data=rows, fields=["query", "response"], out=str(out), dtype="float32").with_values(
        {
            "adapter.r": 8,
            "adapter.target_modules": "all-linear",
            "training.learning_rate": 1e-2,
            "training.max_steps": 3,
            "training.per_device_train_batch_size": 4,
            "training.gradient_checkpointing": False,
            **{key.replace("__", "."): value for key, value in values.items()},
        }
    )


def losses(result):
    return [entry["loss"] for entry in result.history]


def reference_loss(base, rows, fields=("query", "response")):
    """Mean negative log-likelihood of the completion tokens, one row at a time in float64."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(base)
    total, count = 0.0, 0
    for row in load_data(rows, fields=fields, tokenizer=tokenizer):
        prompt, completion = encode(row, tokenizer)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        total += float(cross_entropy(logits, torch.tensor(completion), reduction="sum"))
        count += len(completion)
    return total / count


@pytest.mark.parametrize("kind", ["chat_base", "plain_base"])
def test_the_loss_is_over_the_answers_only(kind, request, rows_file, tmp_path):
    base = request.getfixturevalue(kind)
    # The first step sees every row, before any update.
    result = train(recipe(base, rows_file, tmp_path / "run", training__per_device_train_batch_size=24))
    assert losses(result)[0] == pytest.approx(reference_loss(base, rows_file), rel=1e-5)
    assert losses(result)[-1] < losses(result)[0]


def test_packed_rows_do_not_see_each_other(plain_base, rows_file, tmp_path):
    packed = {"training__packing": True, "training__max_length": 64, "training__per_device_train_batch_size": 24}
    result = train(recipe(plain_base, rows_file, tmp_path / "run", **packed))
    assert losses(result)[0] == pytest.approx(reference_loss(plain_base, rows_file), rel=1e-5)


def test_accumulated_batches_train_like_one_batch(plain_base, rows_file, tmp_path):
    whole = train(recipe(plain_base, rows_file, tmp_path / "whole"))
    parts = train(
        recipe(
            plain_base,
            rows_file,
            tmp_path / "parts",
            training__per_device_train_batch_size=2,
            training__gradient_accumulation_steps=2,
        )
    )
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)


def test_a_run_leaves_adapter_recipe_result_and_report(chat_base, rows_file, tmp_path):
    out = tmp_path / "run"
    plan = recipe(chat_base, rows_file, out, seed=3, dtype="bfloat16")
    plan.eval_data = str(write_rows(tmp_path / "held-out.jsonl", sums(4)))
    result = train(plan)
    assert result.held_out_removed == 4
    assert result.rows == 20
    assert result.samples_are_held_out
    assert [sample["expected"] for sample in result.samples] == ["0", "38", "76", "114"]

    base = AutoModelForCausalLM.from_pretrained(chat_base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, out / "adapter")
    blocks = [p for name, p in model.named_parameters() if "bone_block" in name]
    assert {p.dtype for p in blocks} == {torch.float32}
    assert all(p.abs().max() > 0 for p in blocks)
    assert sum(p.numel() for p in blocks) == result.trainable_parameters
    assert AutoTokenizer.from_pretrained(out / "adapter").chat_template

    again = Recipe.load(out / "recipe.yaml")
    assert again == plan.checked()
    assert json.loads((out / "result.json").read_text())["steps"] == 3
    page = (out / "report.html").read_text()
    assert "<svg" in page and "var(--line)" in page
    assert "http" not in page
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").iterdir())


def test_a_run_is_not_overwritten_unasked(plain_base, rows_file, tmp_path):
    out = tmp_path / "run"
    train(recipe(plain_base, rows_file, out))
    before = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    other = recipe(plain_base, rows_file, out, seed=1, training__max_steps=2)
    with pytest.raises(BoneError, match=r"--resume.*--force"):
        train(other)
    with pytest.raises(BoneError, match="differs from this recipe in seed, training"):
        train(other, resume=True)
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == before
    train(other, force=True)
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() != before


def test_a_run_of_a_version_with_other_defaults_does_not_go_on_by_these(plain_base, rows_file, tmp_path):
    plan = recipe(plain_base, rows_file, tmp_path / "run", training__max_steps=1)
    train(plan)
    written = tmp_path / "run" / "recipe.yaml"
    lines = written.read_text().splitlines(keepends=True)
    written.write_text("".join(line for line in lines if "lr_scheduler_type" not in line))
    with pytest.raises(BoneError, match="differs from this recipe in training"):
        train(plan, resume=True)


def test_a_failed_start_leaves_the_old_run_alone(plain_base, rows_file, tmp_path):
    out = tmp_path / "run"
    train(recipe(plain_base, rows_file, out))
    before = sorted(path for path in out.rglob("*") if path.is_file())
    with pytest.raises(BoneError):
        train(recipe(plain_base, rows_file, out, adapter__target_modules=["nothing"]), force=True)
    assert sorted(path for path in out.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"adapter__target_modules": ["nothing_here"]}, "nothing_here"),
        ({"adapter__r": 0}, "r "),
        ({"adapter__r": 7, "adapter__init_weights": "bat"}, "7"),
        ({"adapter__bottleneck_size": 4}, "bottleneck_size|r="),
        ({"training__max_length": 4}, "max_length"),
        ({"training__lr_scheduler_type": "spiral"}, "spiral"),
        ({"dtype": "int3"}, "dtype 'int3'"),
        ({"quantize": "2bit"}, "quantize '2bit'"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(plain_base, rows_file, tmp_path, values, says):
    with pytest.raises(BoneError, match=says) as error:
        train(recipe(plain_base, rows_file, tmp_path / "run", **values))
    assert "\n" not in str(error.value)
    assert not RunFolder(tmp_path / "run").holds_a_run()


def test_held_out_rows_may_not_be_all_rows(plain_base, rows_file, tmp_path):
    with pytest.raises(BoneError, match="nothing is left"):
        train(recipe(plain_base, rows_file, tmp_path / "run", eval_data=rows_file))


@pytest.mark.parametrize("damaged", ["adapter_model.safetensors", "optimizer.pt"])
def test_a_damaged_checkpoint_is_named_and_kept(plain_base, rows_file, tmp_path, damaged):
    plan = recipe(plain_base, rows_file, tmp_path / "run")
    train(plan)
    file = tmp_path / "run" / "checkpoints" / "checkpoint-3" / damaged
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(BoneError, match=f"{damaged} is damaged"):
        train(plan, resume=True)
    assert file.exists()


def test_a_half_written_checkpoint_is_passed_over(plain_base, rows_file, tmp_path):
    plan = recipe(plain_base, rows_file, tmp_path / "run", training__save_steps=2)
    whole = train(plan)
    # A kill in the middle of the last save: the Trainer's own last file is not there yet.
    (tmp_path / "run" / "checkpoints" / "checkpoint-3" / "trainer_state.json").unlink()
    resumed = train(plan, resume=True)
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantized_base_trains(bits, rows_file, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = str(make_base(tmp_path / "base", chat=False, hidden=64))
    result = train(recipe(base, rows_file, tmp_path / "run", quantize=bits, dtype="bfloat16"))
    assert losses(result)[-1] < losses(result)[0]
    learned = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in learned.values()} == {torch.float32}


@pytest.mark.parametrize("allowed", [False, True])
def test_adapters_that_nothing_uses_stop_the_run(plain_base, rows_file, tmp_path, monkeypatch, allowed):
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: self.down_proj(self.up_proj(x)))
    recipe = Recipe(
        base=plain_base,
        data=rows_file,
        fields=["query", "response"],
        out=str(tmp_path / "run"),
        dtype="float32",
        allow_unused=allowed,
        adapter={"r": 8, "target_modules": ["gate_proj", "up_proj"]},
        training={"max_steps": 2},
    )
    if allowed:
        assert train(recipe).steps == 2
    else:
        with pytest.raises(BoneError, match=r"adapters of 2 layers got no gradient .*layers\.0\.mlp\.gate_proj"):
            train(recipe)
        assert not (tmp_path / "run" / "adapter").exists()
