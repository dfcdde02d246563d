"""``bone_peft.check`` tells what is wrong with an adapted model, and leaves it as it was."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

import bone_peft
from bone_peft import BoneConfig, BoneError

from ..models import ALL_VARIANTS, config_for, llama, randomize, tokens


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.cut, self.late = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        x = self.used(x)
        x = x + self.cut(x).detach()
        return self.late(x) if not self.training else x


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_a_model_that_is_well(variant):
    model = randomize(get_peft_model(llama(), config_for(variant)))
    ids = tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    before = copy.deepcopy(model.state_dict()), [p.grad for p in model.parameters()], torch.get_rng_state()
    found = bone_peft.check(model.train(), {"input_ids": ids})
    assert found.right and found.layers == 14 and found.merge_error < 1e-5
    assert str(found).startswith("14 adapted layers\nmerged differs from unmerged by")
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert all(p.grad is grad for p, grad in zip(model.parameters(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2]) and model.training


def test_what_is_wrong_is_named():
    model = get_peft_model(Net(), BoneConfig(r=8, target_modules=["used", "unused", "cut", "late"]))
    found = bone_peft.check(model, torch.randn(2, 32))
    assert not found.right
    assert [name.rpartition(".")[2] for name in found.no_effect] == ["unused"]
    assert [name.rpartition(".")[2] for name in found.no_gradient] == ["cut", "late", "unused"]
    assert "no effect: base_model.model.unused" in str(found)


def test_a_merge_that_gives_something_else():
    model = get_peft_model(nn.Sequential(nn.Linear(32, 32)), BoneConfig(r=8, target_modules=["0"]))
    layer = model.base_model.model[0]
    layer._merged_weight = lambda names: layer.base_layer.weight.data + 1
    found = bone_peft.check(model, (torch.randn(2, 32),))
    assert found.merge_error > 0.1 and not found.right and "(WRONG)" in str(found)


def test_a_merge_that_is_refused():
    net = nn.Sequential()
    net.add_module("fc", torch.nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)))
    found = bone_peft.check(get_peft_model(net, BoneConfig(r=8, target_modules=["fc"])), torch.randn(2, 32))
    assert found.right and "computed from other parameters" in found.merge_refused


def test_nothing_to_check():
    with pytest.raises(BoneError, match="no active Bone adapter"):
        bone_peft.check(llama(), {"input_ids": tokens()})
    model = get_peft_model(llama(), config_for("bone"))
    model.merge_adapter()
    with pytest.raises(BoneError, match="are merged: call unmerge_adapter"):
        bone_peft.check(model, {"input_ids": tokens()})
