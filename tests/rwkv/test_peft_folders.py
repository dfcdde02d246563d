"""PEFT folders by RWKV's own names, as RWKV-PEFT saves them: PEFT itself makes and merges them on its model."""

import json

import pytest
import torch
from peft import LoraConfig, MissConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from bone_peft import BoneConfig
from bone_peft.errors import BoneError
from bone_peft.files.adapters import read_adapter
from bone_peft.files.bases import load_adapter
from bone_peft.files.conversion import convert
from bone_peft.files.merging import merge
from bone_peft.rwkv.pth_model import load_model

from .conftest import move, run

TARGETS = ["receptance", "key", "value", "output"]
PREFIX = "base_model.model."
ONE_LAYER = {r"blocks\.1\.att\.key": 16}
KINDS = {
    "miss": MissConfig(r=8, target_modules=TARGETS),
    "miss bat": MissConfig(r=8, init_weights="bat", target_modules=TARGETS),
    "miss mini": MissConfig(r=8, mini_r=8, init_weights="mini", target_modules=TARGETS),
    "lora": LoraConfig(r=4, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS),
    "lora patterns": LoraConfig(
        r=4,
        target_modules=TARGETS,
        rank_pattern=ONE_LAYER,
        alpha_pattern=ONE_LAYER,
        layers_to_transform=[1],
        layers_pattern="blocks",
    ),
    "lora parts": LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["ln1", "ln_out"]),
    "bone": BoneConfig(r=8, target_modules=TARGETS, rank_pattern={"att.key": 16}),
    "bat input": BoneConfig(r=8, init_weights="bat", share="input", target_modules=TARGETS),
    "bottleneck": BoneConfig(bottleneck_size=8, bottleneck_alpha=2, target_modules=TARGETS),
}
EXACT = sorted({*KINDS} - {"miss mini"})


def module_of(tensors: dict[str, Tensor]) -> nn.Module:
    """The modules that RWKV-PEFT's model has, around the tensors of a file."""
    root = nn.Module()
    root.config = {"model_type": "rwkv", "tie_word_embeddings": False}
    root.prepare_inputs_for_generation = None
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        here = root
        for part in path:
            if part not in here._modules:
                here.add_module(part, nn.Module())
            here = here.get_submodule(part)
        here.register_parameter(last, nn.Parameter(tensor.clone()))
    for name, module in list(root.named_modules()):
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 2:
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = weight
            root.set_submodule(name, linear)
    return root


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def theirs(base, tmp_path, kind) -> PeftModel:
    """A trained adapter on their model, saved in ``tmp_path / "theirs"``."""
    torch.manual_seed(1)
    model = get_peft_model(module_of(torch.load(base, weights_only=True)), KINDS[kind])
    move(model)
    model.save_pretrained(str(tmp_path / "theirs"))
    return model


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], original: dict[str, Tensor]) -> None:
    assert list(found) == list(original)
    changed = 0
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)
        changed += not torch.equal(tensor, original[name])
    assert changed


def test_merged_into_the_pth_as_peft_merges_it(base, theirs, tmp_path):
    original = torch.load(base, weights_only=True)
    merge(str(base), tmp_path / "theirs", tmp_path / "merged.pth")
    expected = theirs.merge_and_unload().state_dict()
    assert_close(torch.load(tmp_path / "merged.pth", weights_only=True), expected, original)


def test_onto_our_model(base, theirs, tmp_path, ids):
    merge(str(base), tmp_path / "theirs", tmp_path / "merged.pth")
    model, expected = load_model(base), load_model(tmp_path / "merged.pth")(ids).logits
    assert (expected - model(ids).logits).abs().max() > 1e-2
    found = load_adapter(model, tmp_path / "theirs").eval()(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", EXACT, indirect=True)
def test_there_and_back(base, theirs, tmp_path, kind):
    """Through a folder of ours into one of theirs, which PEFT loads onto their model as the same adapter."""
    to = kind.split()[0] if kind.startswith(("miss", "lora")) else "bone"
    convert(tmp_path / "theirs", to, tmp_path / "ours", base=str(base))
    assert not any("blocks." in name for name in load_file(tmp_path / "ours/adapter_model.safetensors"))
    convert(tmp_path / "ours", to, tmp_path / "again", base=str(base), rwkv_names=True)

    again = PeftModel.from_pretrained(module_of(torch.load(base, weights_only=True)), str(tmp_path / "again"))
    expected, found = theirs.merge_and_unload().state_dict(), again.merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_mini_is_written_out_over_its_base(base, tmp_path):
    model = get_peft_model(module_of(torch.load(base, weights_only=True)), KINDS["miss mini"])
    model.save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(BoneError, match="name the base"):
        convert(tmp_path / "theirs", "bone", tmp_path / "ours")
    convert(tmp_path / "theirs", "bone", tmp_path / "ours", base=str(base))
    assert read_adapter(tmp_path / "ours")[0].mini_r is None


@pytest.mark.parametrize("kind", ["miss", "lora"], indirect=True)
def test_commands(base, theirs, tmp_path):
    found = json.loads(run("inspect", tmp_path / "theirs", "--json"))
    assert found["modules"][0]["name"] == "model.layers.0.attn.k_proj" and not found["untrained"]
    run("convert", tmp_path / "theirs", "--to", "bone", "--out", tmp_path / "ours")
    run("convert", tmp_path / "ours", "--to", "bone", "--rwkv-names", "--out", tmp_path / "again")
    names = load_file(tmp_path / "again/adapter_model.safetensors")
    assert f"{PREFIX}blocks.0.att.key" in {name.rpartition(".bone_")[0] for name in names}
    assert run("generate", "--base", base, "--adapter", tmp_path / "again", "--max-new-tokens", "1", "a")


def test_names_of_rwkv_are_for_rwkv(tmp_path, rwkv_free_adapter):
    with pytest.raises(BoneError, match="is of no RWKV model"):
        convert(rwkv_free_adapter, "miss", tmp_path / "out", rwkv_names=True)


@pytest.fixture
def rwkv_free_adapter(fixtures):
    return next(path.parent for path in sorted(fixtures.glob("**/adapter_config.json")))
