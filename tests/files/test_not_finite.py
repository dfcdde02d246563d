"""Numbers that are none: in the adapter, in the base, or because a type is too small."""

import json

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bone_peft import BoneError, convert, inspect_adapter, load_base, merge
from bone_peft.files.bases import load_adapter

from ..cli.test_commands import bone
from ..models import config_for, randomize
from ..runs.tiny import make_base, sums, write_rows

ODD = [float("nan"), float("inf"), float("-inf")]
PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def base(tmp_path):
    return str(make_base(tmp_path / "base", chat=False))


def adapter_for(base, folder, variant="bone", scale=0.05):
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config_for(variant))
    randomize(tuned, scale).save_pretrained(folder)
    return folder


def changed(file, change, name=None):
    """One tensor of a file becomes another."""
    tensors = load_file(file)
    name = name or next(iter(tensors))
    tensors[name] = change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})
    return name


def put(value):
    def change(tensor):
        tensor.view(-1)[3] = value
        return tensor

    return change


@pytest.mark.parametrize("value", ODD)
def test_an_adapter_is_refused_by_all_but_inspect(base, tmp_path, value):
    adapter = adapter_for(base, tmp_path / "adapter")
    changed(adapter / "adapter_model.safetensors", put(value))
    rows = write_rows(tmp_path / "rows.jsonl", sums(3))
    data = ["--data", rows, "--fields", "query", "response"]
    for words in (
        ["generate", "--base", base, "--adapter", adapter, "a"],
        ["eval", "--base", base, "--adapter", adapter, *data],
        ["train", "--base", base, "--continue-from", adapter, *data, "--steps", 1, "--out", tmp_path / "out"],
        ["merge", "--base", base, "--adapter", adapter, "--out", tmp_path / "out"],
        ["convert", adapter, "--to", "lora", "--base", base, "--out", tmp_path / "out"],
        ["convert", adapter, "--to", "miss", "--out", tmp_path / "out"],
    ):
        done = bone(*words)
        assert done.exit_code == 2 and "NaN or infinity" in done.stderr and str(adapter) in done.stderr, done.output
    assert not (tmp_path / "out").exists()
    found = bone("inspect", adapter)
    assert found.exit_code == 0 and "1 elements are NaN or infinite" in found.output
    parsed = json.loads(bone("inspect", adapter, "--json").stdout, parse_constant=pytest.fail)
    assert parsed["nans"] == 1 and [m["norm"] for m in parsed["modules"]].count(None) == 1


def test_norms_beyond_all_numbers_are_json(base, tmp_path):
    adapter = adapter_for(base, tmp_path / "adapter")
    changed(adapter / "adapter_model.safetensors", lambda t: t.double().fill_(1e300))
    assert inspect_adapter(adapter).nans == 0
    json.loads(bone("inspect", adapter, "--json").stdout, parse_constant=pytest.fail)


@pytest.mark.parametrize("to", ["bone", "lora", "miss", "rwkv"])
def test_a_conversion_that_overflows_its_type(base, tmp_path, to):
    adapter = adapter_for(base, tmp_path / "adapter")
    changed(adapter / "adapter_model.safetensors", put(1e6))
    out = tmp_path / ("out.pth" if to == "rwkv" else "out")
    with pytest.raises(BoneError, match="float16"):
        convert(adapter, to, out, base=base, dtype="float16")
    assert not out.exists()
    convert(adapter, to, out, base=base, dtype="bfloat16")


@pytest.mark.parametrize("alpha", [1e308, 1e42])
def test_a_scaling_that_overflows(base, tmp_path, alpha):
    convert(adapter_for(base, tmp_path / "adapter", "bottleneck"), "lora", tmp_path / "lora", base=base)
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": alpha, "alpha_pattern": {}}))
    with pytest.raises(BoneError, match="NaN or infinity"):
        convert(tmp_path / "lora", "bone", tmp_path / "out")


def test_a_merge_that_overflows_its_type(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.to(torch.float16).save_pretrained(base)
    adapter = adapter_for(base, tmp_path / "adapter")
    changed(adapter / "adapter_model.safetensors", put(1e6))
    with pytest.raises(BoneError, match=r"q_proj\.weight.*float16|float16") as caught:
        merge(base, adapter, tmp_path / "out")
    assert "The base holds" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("variant", ["bone", "bat"])
def test_a_broken_base_is_called_one(base, tmp_path, value, variant):
    adapter = adapter_for(base, tmp_path / "adapter", variant)
    changed(f"{base}/model.safetensors", put(value), PROJ)
    with pytest.raises(BoneError, match=rf"[Bb]ase.* holds NaN or infinity in {PROJ}"):
        merge(base, adapter, tmp_path / "out")
    with pytest.raises(BoneError, match=rf"[Bb]ase.* holds NaN or infinity in {PROJ}"):
        load_base(base)
    if variant == "bat":
        with pytest.raises(BoneError, match=rf"[Bb]ase.* holds NaN or infinity in {PROJ}"):
            convert(adapter, "lora", tmp_path / "out", base=base, rank=4)
    assert not (tmp_path / "out").exists()


def test_a_base_beyond_the_type_it_is_loaded_in(base):
    changed(f"{base}/model.safetensors", put(1e6), PROJ)
    with pytest.raises(BoneError, match="float16"):
        load_base(base, dtype="float16")
    assert load_base(base, dtype="bfloat16")


@pytest.mark.parametrize("changes", [{"r": 2**31}, {"r": 2**20}, {"rank_pattern": {"q_proj": 2**40}}, {"r": -1}])
def test_sizes_that_the_tensors_do_not_have(base, tmp_path, changes):
    adapter = adapter_for(base, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(BoneError):
        load_adapter(load_base(base)[0], adapter)


def test_a_config_too_deep(base, tmp_path):
    adapter = adapter_for(base, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text('{"peft_type":' + "[" * 100_000)
    with pytest.raises(BoneError, match="no valid JSON"):
        load_adapter(load_base(base)[0], adapter)
