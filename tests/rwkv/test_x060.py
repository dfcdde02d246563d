"""RWKV-6: its recurrence in float64, its logits in the ``rwkv`` package, and training up to the merged file."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from bone_peft import BoneConfig, BoneError
from bone_peft.files.adapters import read_adapter
from bone_peft.files.bases import load_adapter, load_base
from bone_peft.files.conversion import convert
from bone_peft.files.merging import merge
from bone_peft.runs.training import Recipe, train
from bone_peft.rwkv.fresh_x060 import fresh_model
from bone_peft.rwkv.pth_model import load_model, save_model
from bone_peft.rwkv.recurrence_x060 import recurrence
from bone_peft.rwkv.tokenizer import VOCABULARY

from .conftest import ROWS, assert_checkpointing_changes_nothing, assert_same_with_gradients, move, run

HEADS, WIDTH = 2, 8


# The recurrence


def inputs(batch, time, dtype=torch.float64, hard=False, width=WIDTH):
    r, k, v, decay = (torch.randn(batch, time, HEADS, width, dtype=torch.float64) for _ in range(4))
    # ``hard``: channels that forget all within one token, beside others that keep all.
    w = -torch.exp(6 * decay if hard else decay)
    state = torch.randn(batch, HEADS, width, width, dtype=torch.float64)
    u = torch.randn(HEADS, width, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (r, w, k, v, u, state)]


def by_token(r, w, k, v, u, state, mask=None):
    outputs = []
    for t in range(r.shape[1]):
        added = k[:, t, :, :, None] * v[:, t, :, None, :]
        y = (r[:, t, :, :, None] * (state + u[..., None] * added)).sum(-2)
        new = w[:, t, :, :, None].exp() * state + added
        if mask is not None:
            here = mask[:, t, None, None]
            y, new = y * here, torch.where(here[..., None], new, state)
        outputs.append(y)
        state = new
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 50])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_output_state_and_gradients(time, masked, hard):
    values = inputs(2, time, hard=hard)
    mask = torch.rand(2, time) > 0.3 if masked else None
    assert_same_with_gradients(by_token, recurrence, values, mask)


@pytest.mark.parametrize("hard", [False, True])
def test_float32_loses_nothing_that_float32_has(hard):
    values = inputs(2, 64, torch.float32, hard=hard)
    for a, b in zip(by_token(*(x.detach().double() for x in values)), recurrence(*values), strict=True):
        assert float((a - b).norm() / a.norm()) < 2e-6


# The model


def small_model():
    """Every tensor away from its initial value, so that each of them matters."""
    torch.manual_seed(0)
    model = fresh_model(128, 2, ROWS, mix_low_rank_dim=16, decay_low_rank_dim=24)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def base6(base, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("x060") / "base.pth"
    save_model(small_model(), path)
    path.with_name(VOCABULARY).write_bytes(base.with_name(VOCABULARY).read_bytes())
    return path


@pytest.fixture(scope="module")
def client_class():
    """The ``rwkv`` package chooses between its two models when it is imported."""
    source = importlib.util.find_spec("rwkv").submodule_search_locations[0]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RWKV_V7_ON", "RWKV_JIT_ON", "RWKV_CUDA_ON"):
            patch.setenv(name, "0")
        spec = importlib.util.spec_from_file_location("rwkv_before_7", Path(source, "model.py"))
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module.RWKV


def close(found, expected, tolerance=1e-4):
    return float((found - expected).abs().max() / expected.abs().max()) < tolerance


def test_a_file_comes_back_as_it_was(base6, tmp_path):
    save_model(load_model(base6), tmp_path / "again.pth")
    stored, written = (torch.load(path, weights_only=True) for path in (base6, tmp_path / "again.pth"))
    assert set(stored) == set(written)
    assert all(torch.equal(stored[name], written[name]) for name in stored)
    assert stored["blocks.1.att.time_maa_x"].shape == (1, 1, 128)
    assert stored["blocks.1.att.time_maa_w2"].shape == (5, 16, 128)


@torch.no_grad()
def test_padding_cache_and_packing(model, ids):
    whole = model(ids).logits
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[0, 9:], model(ids[:1, 9:]).logits[0])
    first = model(ids[:, :20], use_cache=True)
    rest = model(ids[:, 20:], past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(torch.cat((first.logits, rest), 1), whole)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids[:1], use_cache=False, **options)
    assert torch.equal(model.generate(ids[:1], **options), expected)
    positions = torch.cat((torch.arange(11), torch.arange(37))).unsqueeze(0)
    packed = model(torch.cat((ids[:1, :11], ids[1:2]), 1), position_ids=positions).logits
    torch.testing.assert_close(packed, torch.cat((model(ids[:1, :11]).logits, model(ids[1:2]).logits), 1))


def test_gradient_checkpointing_changes_nothing(model, ids):
    assert_checkpointing_changes_nothing(model, ids)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blocks.1.ln2.bias": None}, "no whole RWKV-6 checkpoint: it lacks blocks.1.ln2.bias"),
        ({"blocks.1.att.time_odd": torch.ones(3)}, "unknown blocks.1.att.time_odd"),
        ({"blocks.1.att.time_decay_w1": torch.ones(128, 7)}, "blocks.1.att.time_decay_w1 in the shape"),
        ({"blocks.0.att.time_faaaa": None}, "no whole RWKV-6"),
    ],
)
def test_what_is_no_whole_rwkv6_is_refused_in_a_sentence(base6, tmp_path, changes, sentence):
    stored = torch.load(base6, weights_only=True) | changes
    torch.save({name: tensor for name, tensor in stored.items() if tensor is not None}, tmp_path / "changed.pth")
    with pytest.raises(BoneError, match=sentence):
        load_base(str(tmp_path / "changed.pth"))


def test_tensor_parallel_is_refused(base6):
    with pytest.raises(BoneError, match="Tensor parallel splits models in Transformers' own format"):
        load_base(str(base6), parts=2)


# Adapters


PARTS = ["mix", "attn_norm", "ffn_norm", "pre_norm", "g_norm", "model.norm", "embeddings", "lm_head"]
BAT = {"r": 32, "init_weights": "bat", "share": "input"}
CASES = {
    "bone, ragged": {"r": 48},
    "bat-input": BAT,
    "bat": {"r": 32, "init_weights": "bat"},
    "bone and all other parts": {"r": 32, "modules_to_save": PARTS},
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_merged_logits_in_the_rwkv_package_are_those_of_the_adapted_model(base6, tmp_path, client_class, ids, case):
    row = ids[:1]
    plain, _ = load_base(str(base6), dtype="float32")
    before = plain(row).logits[0]
    client = client_class(str(base6.with_suffix("")), "cpu fp32")
    assert close(client.forward(row[0].tolist(), None, full_output=True)[0], before)

    model = get_peft_model(plain, BoneConfig(task_type="CAUSAL_LM", **CASES[case])).eval()
    move(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    adapter, _ = read_adapter(tmp_path / "adapter")
    assert len(adapter.layers) == 2 * 8, "the eight matrices of each block are the targets"
    expected = model(row).logits[0]
    assert not close(expected, before, 1e-2)
    merge(str(base6), tmp_path / "adapter", tmp_path / "merged.pth")
    client = client_class(str(tmp_path / "merged"), "cpu fp32")
    assert close(client.forward(row[0].tolist(), None, full_output=True)[0], expected)
    if case != "bat":
        convert(tmp_path / "adapter", "rwkv", tmp_path / "theirs.pth")
        again = load_adapter(load_base(str(base6), dtype="float32")[0], tmp_path / "theirs.pth")
        torch.testing.assert_close(again(row).logits[0], expected)


@pytest.mark.parametrize(
    "options",
    [
        {"adapter": BAT, "training": {"packing": True, "max_length": 64}},
        {"adapter": {"r": 32}, "dtype": "bfloat16", "quantize": "8bit"},
    ],
    ids=["bat and packing", "8bit"],
)
def test_from_the_first_step_to_the_merged_file(base6, tmp_path, options):
    if "quantize" in options:
        pytest.importorskip("bitsandbytes")
    lines = (f"User: {n} and {n}\n\nAssistant: it is {n}" for n in ("one", "two", "three", "four", "five", "six"))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    settings = {"max_steps": 6, "per_device_train_batch_size": 6, "learning_rate": 1e-2, "save_strategy": "no"}
    options = {"dtype": "float32", **options, "training": settings | options.get("training", {})}
    recipe = Recipe(base=str(base6), data=str(tmp_path / "text.jsonl"), out=str(tmp_path / "run"), **options)
    result = train(recipe)
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    run("merge", "--base", base6, "--adapter", result.adapter, "--out", tmp_path / "merged.pth")
    before, merged = (torch.load(path, weights_only=True) for path in (base6, tmp_path / "merged.pth"))
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert (
        len(changed) == 2 * 8 and "blocks.0.att.gate.weight" in changed and "blocks.1.ffn.receptance.weight" in changed
    )
