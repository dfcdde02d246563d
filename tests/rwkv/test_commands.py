"""The commands on ``.pth`` files, as a user types them."""

import json

import pytest
import torch

from .conftest import run


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """A trained Bat, its RWKV-PEFT file and its merge, all by command."""
    folder = tmp_path_factory.mktemp("commands")
    data = folder / "data.jsonl"
    rows = [{"text": f"User: say {n}\n\nAssistant: {n}"} for n in ("a", "b", "c", "d")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run("train", "rwkv-bat", "--base", base, "--data", data, "--out", folder / "run", "--r", 32, "--steps", 3,
        "--batch-size", 4, "--lr", 1e-2)  # fmt: skip
    run("convert", folder / "run/adapter", "--to", "rwkv", "--dtype", "bfloat16", "--out", folder / "theirs.pth")
    return folder


def test_the_file_for_rwkv_peft_holds_what_its_merge_wants(folder):
    stored = torch.load(folder / "theirs.pth", weights_only=True)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert stored["blocks.1.ffn.value.disha"].shape == (512 // 32, 32, 32)
    assert any(tensor.any() for tensor in stored.values())


def test_inspect_knows_it(folder):
    found = json.loads(run("inspect", folder / "theirs.pth", "--json"))
    assert (found["variant"], found["r"], found["nans"], found["untrained"]) == ("bat-input", {"32": 12}, 0, False)


def test_merge_verify_generate_and_eval(base, folder):
    merged = base.with_name("merged.pth")  # its vocabulary lies there
    output = run("merge", "--base", base, "--adapter", folder / "theirs.pth", "--out", merged, "--verify")
    assert "12 of 69 tensors changed" in output and "as merged in memory" in output
    assert run("generate", "--base", merged, "--max-new-tokens", 4, "say a")
    scores = folder / "scores.json"
    run("eval", "--base", base, "--adapter", folder / "theirs.pth", "--merged", merged, "--no-bf16",
        "--data", "gym:chain_sum?size=4&seed=1", "--json", scores)  # fmt: skip
    found = json.loads(scores.read_text(encoding="utf-8"))["scores"]
    assert found["adapter"]["loss"] == pytest.approx(found["merged"]["loss"], rel=1e-4)
    assert found["base"]["loss"] != pytest.approx(found["merged"]["loss"], rel=1e-4)
