"""Rows of a step in one line: RWKV computes it as a batch, and learns from it what it learns from its rows."""

import json
import random

import pytest
import torch
from peft import get_peft_model

from bone_peft import BoneConfig
from bone_peft.runs.training import checkpointing, train
from bone_peft.runs.training.completion_loss import SUMS, completion_loss
from bone_peft.runs.training.padding_free import by_rows, fault, in_other_rows, lines_for
from bone_peft.rwkv import causal_lm

from .conftest import ROWS, move, small_model
from .test_train import losses, recipe
from .test_x060 import small_model as small_x060

MODELS = {"x070": small_model, "x060": small_x060}


def rows_of(*lengths):
    draw = random.Random(0)
    rows = [[draw.randrange(3, ROWS) for _ in range(length)] for length in lengths]
    return [{"input_ids": row, "labels": [-100] * (len(row) // 2) + row[len(row) // 2 :]} for row in rows]


def adapted(kind):
    config = BoneConfig(r=16, target_modules=["r_proj", "k_proj", "o_proj", "key"])
    model = get_peft_model(MODELS[kind](), config)
    move(model)
    return model.double()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("longest", [None, 40])
def test_loss_and_gradients_are_those_of_each_row(kind, longest, monkeypatch):
    model, rows = adapted(kind), rows_of(19, 7, 33)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    answers = [sum(label != -100 for label in row["labels"]) for row in rows]
    alone = sum(
        model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss * count
        for row, count in zip(rows, answers, strict=True)
    )
    base = model.get_base_model()
    batch = lines_for(base)(0, 10**6, longest)(rows)
    assert batch.pop("row_tokens") == 19 + 7 + 33
    monkeypatch.setattr(causal_lm, "_starts", None)  # which would wait for the GPU
    with by_rows(base):
        loss, sums = completion_loss(model, batch, wanted=True)
    assert float(loss) == pytest.approx(float(alone), rel=1e-6)
    for found, wanted in zip(torch.autograd.grad(loss, trained), torch.autograd.grad(alone, trained), strict=True):
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert dict(zip(SUMS, sums.tolist(), strict=True))["answers"] == sum(answers)


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_found_to_keep_rows_apart(kind):
    first, second = (row["input_ids"] for row in rows_of(19, 7))
    assert fault(MODELS[kind](), first, second) is None


def test_a_state_that_goes_on_from_row_to_row_is_found(monkeypatch):
    model = small_model()
    forward = model.model._walk

    def leaky(input_ids, *args, **kwargs):
        output = forward(input_ids, *args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + 0.1 * output.last_hidden_state.sum((0, 1))
        return output

    monkeypatch.setattr(model.model, "_walk", leaky)
    first, second = (row["input_ids"] for row in rows_of(19, 7))
    assert fault(model, first, second) == "a row sees the one before it"


def test_shapes_are_few_and_rows_are_of_one_length():
    collate, draw, shapes = lines_for(small_model())(0, 10**6, 60, 4), random.Random(0), set()
    for _ in range(200):
        rows = rows_of(*(draw.randint(10, 60) for _ in range(4)))
        batch = collate(rows)
        length = batch["max_length_q"]
        assert batch["cu_seq_lens_q"].tolist() == [length * n for n in range(5)]
        longest = max(len(row["input_ids"]) for row in rows)
        assert longest <= length <= min(60, 1.25 * longest)
        for n, row in enumerate(rows):
            start = n * length
            assert batch["input_ids"][0, start : start + len(row["input_ids"])].tolist() == row["input_ids"]
            assert not batch["input_ids"][0, start + len(row["input_ids"]) : start + length].any()
        shapes.add((length, len(batch["targets"])))
    assert len(shapes) <= 40
    other = in_other_rows(batch)
    assert other["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_q"].tolist()
    assert torch.equal(other["position_ids"], batch["position_ids"])
    assert not torch.equal(other["input_ids"], batch["input_ids"])


def test_memory_is_foreseen_for_rows_that_are_filled_up():
    model = get_peft_model(small_model(), BoneConfig(r=16, target_modules=["key"]))
    batch = lines_for(model.get_base_model())(0, 10**6)(rows_of(300, 100))
    for name in ("labels", "targets", "logits_to_keep", "row_tokens"):
        batch.pop(name)
    kept = checkpointing.saved_bytes(model.eval(), batch)
    assert checkpointing.needed(model, rows_of(300)[0]["input_ids"], [300, 300]) == pytest.approx(kept, rel=0.25)


@pytest.mark.parametrize(("packing", "lengths"), [(False, [61, 61]), (True, [49] * 7)])
def test_memory_is_asked_for_what_a_batch_becomes(base, tmp_path, monkeypatch, packing, lengths):
    """Of rows of 61 and 9 tokens, or of lines that hold one row of 49 and rows of 9."""
    asked = []
    monkeypatch.setattr(checkpointing, "needed", lambda model, row, lengths: asked.append(lengths) or 0)
    data = tmp_path / "rows.jsonl"
    texts = ["x" * (47 if packing else 59), *(["x" * 7] * 6)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {"per_device_train_batch_size": 2, "packing": packing, "max_length": 64}
    train(recipe(base, str(data), tmp_path / "run", steps=1, training=settings))
    assert asked == [lengths]


def test_a_run_learns_what_it_learns_with_padding(base, tmp_path, monkeypatch):
    walk, masks = causal_lm._Model._walk, []

    def seen(self, input_ids=None, attention_mask=None, **kwargs):
        masks.append((self.training, attention_mask is None, len(input_ids)))
        return walk(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(causal_lm._Model, "_walk", seen)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f'{{"prompt": "User: {"x" * n}", "completion": "it is {n}"}}\n' for n in range(1, 25, 2)))
    lines = train(recipe(base, str(data), tmp_path / "lines", training={"logging_steps": 1}))
    steps = [(unmasked, rows) for training, unmasked, rows in masks if training]
    assert steps and set(steps) == {(True, 6)}, "a batch without a mask"
    told = {"logging_steps": 1, "pad_to_multiple_of": 1}
    padded = train(recipe(base, str(data), tmp_path / "padded", training=told))
    assert losses(lines) == pytest.approx(losses(padded), rel=1e-4)
