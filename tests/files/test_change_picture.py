"""``bone inspect --plot``: norms as merging in memory has them, where they are drawn, and what is said."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from bone_peft.cli.main import app
from bone_peft.files.change_norms import Change, Changes, change_norms
from bone_peft.files.change_picture import by_layer, draw_changes

from ..models import config_for, gpt2, llama, randomize
from ..versions import needs
from .test_files_with_experts import gpt_oss, qwen
from .test_merging import adapter, in_memory, saved

MODELS = {"llama": llama, "gpt2": gpt2, "qwen": qwen, "gpt_oss": gpt_oss}


@needs("transformers", "5.17")
@pytest.mark.parametrize(
    ("model", "variant", "experts"),
    [
        ("llama", "bat", "each"),
        ("llama", "bone", "each"),
        ("gpt2", "bottleneck", "each"),
        ("qwen", "bat", "each"),  # a tensor for each matrix of each expert
        ("gpt_oss", "bone", "shared"),  # all experts in one
    ],
)
def test_a_change_is_what_merging_adds(model, variant, experts, tmp_path):
    base = saved(MODELS[model](), tmp_path / "base", torch.float32)  # else merging rounds
    live = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    config = config_for(variant, target_modules="all-linear", experts=experts)
    folder = adapter(live, tmp_path / "adapter", config)
    before = dict(AutoModelForCausalLM.from_pretrained(base, dtype="float32").named_parameters())
    merged = dict(in_memory(base, folder).named_parameters())
    found = change_norms(folder, str(base))
    assert found.is_of_weights and len(found.by_module) > 4
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert {name if name in before else f"{name}.weight" for name in found.by_module} == changed
    for module, change in found.by_module.items():
        name = module if module in before else f"{module}.weight"
        assert change.weight == pytest.approx(before[name].double().norm().item())
        assert change.added == pytest.approx((merged[name] - before[name]).double().norm().item(), rel=1e-4)


def test_without_a_base_it_is_the_change_of_lora_and_else_the_tensors(tmp_path):
    lora = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", init_lora_weights=False)
    tuned = get_peft_model(llama(), lora)
    tuned.save_pretrained(tmp_path / "lora")
    layer = tuned.base_model.model.model.layers[1].mlp.up_proj
    found = change_norms(tmp_path / "lora")
    assert found.is_of_weights
    expected = layer.get_delta_weight("default").double().norm().item()
    assert expected > 0.1
    assert found.by_module["model.layers.1.mlp.up_proj"] == Change(pytest.approx(expected))

    tuned = randomize(get_peft_model(llama(), config_for("bat")))
    tuned.save_pretrained(tmp_path / "bat")
    stored = load_file(tmp_path / "bat" / "adapter_model.safetensors")
    found = change_norms(tmp_path / "bat")
    assert not found.is_of_weights
    name = next(iter(found.by_module))
    expected = stored[f"base_model.model.{name}.bone_block"].double().norm().item()
    assert found.by_module[name] == Change(pytest.approx(expected))


def test_modules_have_their_place_and_experts_of_a_layer_one():
    grid = by_layer(
        {
            "model.layers.0.mlp.experts.0.up_proj": Change(3.0, 1.0),
            "model.layers.0.mlp.experts.1.up_proj": Change(4.0, 1.0),
            "model.layers.11.mlp.up_proj": Change(1.0),
            "blocks.2": Change(2.0),
            "lm_head": Change(5.0),
        }
    )
    assert grid == {
        "model.layers.*.mlp.experts.up_proj": {0: Change(5.0, pytest.approx(math.sqrt(2)))},
        "model.layers.*.mlp.up_proj": {11: Change(1.0)},
        "blocks.*": {2: Change(2.0)},
        "lm_head": {None: Change(5.0)},
    }


@pytest.mark.parametrize("added", [0.0, math.nan, math.inf, 1.0])
def test_whatever_the_numbers_it_is_drawn(added, tmp_path):
    some = {"model.layers.0.q_proj": Change(added, 2.0), "lm_head": Change(0.0, 0.0), "$x$.0.y": Change(1.0, 1.0)}
    draw_changes(Changes("bone", True, some), tmp_path / "some.png", "$name$ \x1b")
    assert (tmp_path / "some.png").stat().st_size > 1000


def test_the_command(tmp_path):
    randomize(get_peft_model(llama(), config_for("bone"))).save_pretrained(tmp_path / "adapter")
    base = saved(llama(), tmp_path / "base")
    picture = tmp_path / "change.svg"

    def run(*arguments):
        return CliRunner().invoke(app, ["inspect", str(tmp_path / "adapter"), *map(str, arguments)])

    shown = run("--plot", picture, "--base", base)
    assert shown.exit_code == 0 and "PEFT Bone folder" in shown.output
    first = picture.read_text()
    assert first.startswith("<?xml") and run("--plot", picture).exit_code == 0 and picture.read_text() != first

    wrong = tmp_path / "other"
    saved(llama(hidden_size=16), wrong)
    for arguments, says in (
        (("--base", base), "--base is for --plot"),
        (("--plot", tmp_path / "change.txt"), "A chart is an"),
        (("--plot", picture, "--base", wrong), "does not fit"),
        (("--plot", picture, "--base", tmp_path / "none"), "There is no base model"),
    ):
        shown = run(*arguments)
        assert shown.exit_code == 2 and says in shown.output, arguments

    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    next(iter(stored.values()))[0] = math.nan
    save_file(stored, tmp_path / "adapter" / "adapter_model.safetensors")
    assert "Broken" in run("--plot", picture).output
