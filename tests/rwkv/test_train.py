"""Training on a ``.pth`` base, with the recipes and data of every other base."""

import json
import re

import pytest
import torch

from bone_peft.errors import BoneError
from bone_peft.files.adapters import read_adapter
from bone_peft.files.bases import load_adapter, load_base
from bone_peft.files.conversion import convert
from bone_peft.files.merging import merge
from bone_peft.runs.data import load_data
from bone_peft.runs.training import Recipe, train
from bone_peft.rwkv.tokenizer import VOCABULARY

BAT = {"r": 16, "init_weights": "bat", "share": "input"}


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> str:
    """RWKV-PEFT's own form of data: lines of ``{"text": ...}``."""
    path = tmp_path_factory.mktemp("data") / "text.jsonl"
    lines = (f"User: {n} and {n}\n\nAssistant: it is {n}" for n in ("one", "two", "three", "four", "five", "six"))
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def recipe(base, data, out, *, steps=8, training=None, **options) -> Recipe:
    settings = {
        "max_steps": steps,
        "per_device_train_batch_size": 6,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        **(training or {}),
    }
    return Recipe(base=str(base), data=data, out=str(out), **{"dtype": "float32", **options}, training=settings)


def losses(result) -> list[float]:
    return [entry["loss"] for entry in result.history if "loss" in entry]


def test_bat_from_first_step_to_merged_file(base, documents, tmp_path):
    first = train(recipe(base, documents, tmp_path / "first", adapter=BAT))
    before = losses(first)
    assert before[-1] < before[0] - 0.5
    adapter, _ = read_adapter(first.adapter)
    assert adapter.config.base_model_name_or_path == str(base) and len(adapter.layers) == 12

    # On from it, by way of RWKV-PEFT's file.
    theirs = tmp_path / "theirs.pth"
    convert(first.adapter, "rwkv", theirs)
    stored = torch.load(theirs, weights_only=True)
    assert stored["blocks.0.att.key.disha"].shape == (128 // 16, 16, 16)
    second = train(recipe(base, documents, tmp_path / "second", steps=2, continue_from=str(theirs)))
    assert abs(losses(second)[0] - before[-1]) < 0.5 < before[0] - losses(second)[0]

    merge(str(base), second.adapter, tmp_path / "merged.pth")
    model, tokenizer = load_base(str(base), dtype="float32")
    ids = tokenizer("User: two and two", return_tensors="pt")["input_ids"]
    expected = load_adapter(model, second.adapter)(ids).logits
    (tmp_path / VOCABULARY).write_bytes(base.with_name(VOCABULARY).read_bytes())
    torch.testing.assert_close(
        load_base(str(tmp_path / "merged.pth"), dtype="float32")[0](ids).logits, expected, rtol=1e-4, atol=1e-4
    )


PARTS = {
    "ln": (["attn_norm", "ffn_norm", "pre_norm", "g_norm", "model.norm"], r"ln"),
    "emb": (["embeddings"], r"emb\."),
    "head": (["lm_head"], r"head\."),
    "time": (["mix", "w_lora", "a_lora", "v_lora", "g_lora"], r"\.(att|ffn)\.([xkr]_\w|[wavg][012])$"),
}
"""RWKV-PEFT's word: our modules, and the names in its files."""


@pytest.mark.parametrize("part", PARTS)
def test_parts_beside_the_matrices(base, documents, tmp_path, part):
    modules, names = PARTS[part]
    result = train(recipe(base, documents, tmp_path / "run", steps=2, adapter={"r": 32, "modules_to_save": modules}))
    convert(result.adapter, "rwkv", tmp_path / "theirs.pth")
    merge(str(base), tmp_path / "theirs.pth", tmp_path / "merged.pth")
    files = (base, tmp_path / "theirs.pth", tmp_path / "merged.pth")
    before, theirs, merged = (torch.load(file, weights_only=True) for file in files)
    expected = {name for name in before if re.search(names, name)}
    assert expected == {name for name in theirs if not name.endswith(".disha")}
    for name in expected:
        assert not torch.equal(theirs[name], before[name])
        assert torch.equal(theirs[name], merged[name])


@pytest.mark.parametrize("word", ["disha", "bone"])
@pytest.mark.parametrize("mode", ["bone", "bat"])
def test_training_goes_on_from_a_file_of_rwkv_peft(base, documents, tmp_path, word, mode):
    theirs = {}
    for name, weight in torch.load(base, weights_only=True).items():
        if weight.ndim == 2 and re.search(r"\.(receptance|key|value|output)\.weight$", name):
            shape = (32, weight.shape[0]) if mode == "bone" else (weight.shape[1] // 32, 32, 32)
            theirs[name.replace(".weight", f".{word}")] = (0.05 * torch.randn(shape)).bfloat16()
    torch.save(theirs, tmp_path / "theirs.pth")
    merge(str(base), tmp_path / "theirs.pth", tmp_path / "merged.pth")
    (tmp_path / VOCABULARY).write_bytes(base.with_name(VOCABULARY).read_bytes())
    model, tokenizer = load_base(str(tmp_path / "merged.pth"), dtype="float32")
    total = count = 0
    for row in load_data(documents, tokenizer=tokenizer):
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token, return_tensors="pt")["input_ids"]
        total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1

    result = train(recipe(base, documents, tmp_path / "run", steps=6, continue_from=str(tmp_path / "theirs.pth")))
    assert losses(result)[0] == pytest.approx(total / count, rel=1e-3)
    assert losses(result)[-1] < losses(result)[0] - 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"adapter": {"r": 32}, "training": {"packing": True, "max_length": 64}},
        {"adapter": {"r": 32}, "training": {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}},
        {"adapter": {"bottleneck_size": 8}, "dtype": "bfloat16"},
        {"adapter": BAT, "training": {"max_length": 12}},
        {"adapter": BAT, "dtype": "bfloat16", "quantize": "4bit"},
        {"adapter": {"r": 32}, "dtype": "bfloat16", "quantize": "8bit"},
    ],
    ids=["packing", "checkpointing", "bottleneck", "context", "4bit", "8bit"],
)
def test_options_that_matter(base, documents, tmp_path, options):
    if "quantize" in options:
        pytest.importorskip("bitsandbytes")
    found = losses(train(recipe(base, documents, tmp_path / "run", steps=4, **options)))
    assert found[-1] < found[0] - 0.1


def test_completion_only_is_the_loss_mask(base, tmp_path):
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "User: a\n\nAssistant:", "completion": f" {word}"} for word in ("yes", "no", "may be")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model, tokenizer = load_base(str(base), dtype="float32")
    total, count, everything = 0.0, 0, []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]])
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none").detach()
        total, count = total + float(loss[len(prompt) - 1 :].sum()), count + ids.shape[1] - len(prompt)
        everything.extend(loss.tolist())
    options = {"adapter": {"r": 32}, "chat": False, "steps": 1}
    result = train(recipe(base, str(data), tmp_path / "masked", **options))
    assert losses(result)[0] == pytest.approx(total / count, rel=1e-3)
    whole = {"completion_only_loss": False}
    result = train(recipe(base, str(data), tmp_path / "whole", **options, training=whole))
    assert losses(result)[0] == pytest.approx(sum(everything) / len(everything), rel=1e-3)


def test_continue_from_and_adapter_options_contradict_each_other(base, documents, tmp_path):
    with pytest.raises(BoneError, match=r"leave out adapter\.r\."):
        train(recipe(base, documents, tmp_path / "run", continue_from="somewhere", adapter={"r": 8}))


def test_pairs_are_not_for_rwkv(base, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "one", "chosen": "two", "rejected": "three"}\n', encoding="utf-8")
    plan = recipe(base, str(data), tmp_path / "run", method="dpo", chat=False, adapter={"r": 32})
    with pytest.raises(BoneError, match="method dpo is not for RWKV"):
        train(plan)
