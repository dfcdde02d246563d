"""Rows in pieces, the state carried on: the loss of one long pass, and gradients that end where a piece begins."""

import json

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from bone_peft import BoneConfig
from bone_peft.errors import BoneError
from bone_peft.runs.training import train
from bone_peft.runs.training.context_chunks import loss_in_chunks
from bone_peft.runs.training.recipe import Recipe
from bone_peft.rwkv.fresh_x060 import fresh_model as fresh_x060

from ..runs.tiny import make_base
from .conftest import ROWS, move, run, small_model

LENGTH = 45


@pytest.fixture(params=["x070", "x060"])
def model(request):
    """In training and in float64, with an adapter that does something."""
    torch.manual_seed(0)
    base = small_model() if request.param == "x070" else fresh_x060(128, 2, ROWS)
    move(base)
    model = get_peft_model(base.double(), BoneConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    move(model)
    return model.double().train()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Three rows: whole, padded by more than a piece, and with an answer at its end only."""
    ids = torch.randint(1, ROWS, (3, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[2, :40] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def learn(model, batch, size) -> tuple[Tensor, dict[str, Tensor], list[bool]]:
    """Loss, gradients, and for each piece that was learned from whether it was called the last."""
    called = []

    def backward(loss_of_piece, is_last):
        called.append(is_last)
        loss = loss_of_piece()
        loss.backward()
        return loss

    model.zero_grad()
    loss, sums = loss_in_chunks(model, batch, size, True, backward)
    assert sums[2] == (batch["labels"][:, 1:] != -100).sum()
    return loss, gradients(model), called


def gradients(model) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def in_one_pass(model, batch) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")


def cut_by_hand(model, batch, size) -> None:
    """Backward of each piece, after a state that the model in eval mode made of all tokens before it."""
    targets = pad(batch["labels"][:, 1:], (0, 1), value=-100)
    for start in range(0, LENGTH, size):
        state = None
        if start:
            before = {name: batch[name][:, :start] for name in ("input_ids", "attention_mask")}
            with torch.no_grad():
                state = model.eval()(**before, use_cache=True).past_key_values
        piece = {name: batch[name][:, start : start + size] for name in ("input_ids", "attention_mask")}
        logits = model.eval()(**piece, past_key_values=state, use_cache=False).logits
        cross_entropy(logits.flatten(0, 1), targets[:, start : start + size].flatten(), reduction="sum").backward()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and all(grad.any() for grad in expected.values())
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-4 * grad.abs().max().item(), msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(model, batch, checkpointing):
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, found, called = learn(model, batch, 16)
    assert called == [False, False, True]
    torch.testing.assert_close(loss, in_one_pass(model, batch).detach(), rtol=1e-5, atol=0, check_dtype=False)
    model.gradient_checkpointing_disable()
    model.zero_grad()
    cut_by_hand(model, batch, 16)
    assert_same(found, gradients(model))


def test_a_piece_as_long_as_the_rows_is_one_pass(model, batch):
    _, found, _ = learn(model, batch, LENGTH)
    model.zero_grad()
    in_one_pass(model, batch).backward()
    assert_same(found, gradients(model))


def test_nothing_to_learn_is_no_gradient(model, batch):
    batch["labels"][:] = -100
    model.zero_grad()
    loss, _ = loss_in_chunks(model, batch, 16, False, lambda piece, last: (x := piece(), x.backward())[0])
    assert loss == 0 and not any(grad.any() for grad in gradients(model).values())


def test_pieces_without_an_answer_keep_nothing_for_backward(model, batch):
    batch["labels"][:, :40] = -100
    _, _, called = learn(model, batch, 16)
    assert called == [True]


def test_not_for_learning(model, batch):
    loss, sums = loss_in_chunks(model.eval(), batch, 16, False)
    assert sums is None and not loss.requires_grad
    torch.testing.assert_close(loss, in_one_pass(model, batch).detach(), rtol=1e-5, atol=0, check_dtype=False)


# Runs


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = ["a bird that sings in a tree at noon " * n for n in (2, 3, 4, 5)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def settings(base, rows, out, **training) -> dict:
    training = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **training}
    return {
        "base": str(base),
        "data": str(rows),
        "out": str(out),
        "dtype": "float32",
        "adapter": {"r": 8},
        "training": {"learning_rate": 1e-2, "save_strategy": "no", **training},
    }


def test_a_run(base, rows, tmp_path):
    """The first loss is before the first step, and forward is the same; held-out rows are scored in pieces too."""
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text(json.dumps({"text": "a fish that sings in a tree at noon " * 4}) + "\n")
    given = settings(base, rows, tmp_path / "whole", eval_strategy="steps", eval_steps=1, max_length=None)
    whole = train(Recipe().merged(given | {"eval_data": str(held_out)}))
    out = run(
        *("train", "--base", base, "--data", rows, "--eval-data", held_out, "--out", tmp_path / "pieces"),
        *("--context-chunk", "16", "--no-bf16", "--r", "8", "--lr", "1e-2", "--steps", "2", "--batch-size", "2"),
        *("--grad-accum", "2", "--set", "training.save_strategy=no", "--set", "training.eval_strategy=steps"),
        *("--set", "training.eval_steps=1"),
    )
    assert "cut" not in out
    found = json.loads((tmp_path / "pieces/result.json").read_text())
    expected = json.loads((tmp_path / "whole/result.json").read_text())
    first, before = found["history"][0], expected["history"][0]
    assert first["loss"] == pytest.approx(before["loss"], rel=1e-4)
    assert whole.history[-1] != found["history"][-1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"context_chunk": 0}, "1 or more"),
        ({"context_chunk": 64, "training": {"max_length": 64}}, "raise --max-length"),
        ({"context_chunk": 64, "training": {"max_length": 128, "packing": True}}, "leave packing out"),
    ],
)
def test_refused(base, rows, tmp_path, change, sentence):
    given = settings(base, rows, tmp_path / "out")
    change = change | {"training": given["training"] | change.get("training", {})}
    with pytest.raises(BoneError, match=sentence):
        train(Recipe().merged(given | change))
    assert not (tmp_path / "out").exists()


def test_other_models_carry_no_state(rows, tmp_path):
    given = settings(make_base(tmp_path / "base", chat=False), rows, tmp_path / "out") | {"context_chunk": 16}
    with pytest.raises(BoneError, match="context_chunk is for RWKV"):
        train(Recipe().merged(given))
