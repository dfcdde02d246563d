"""Where PEFT has a Bone of its own, ours takes its place; and all of it or nothing."""

import subprocess
import sys

import pytest

from bone_peft.method import compat

from ...versions import needs


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


HALF_WAY = """
import sys
import peft
from peft import mapping, PeftType
from peft.utils import hotswap, save_and_load

def everything():
    tables = [value for name, value in vars(mapping).items() if name.startswith("PEFT_TYPE_TO")]
    owners = [peft, peft.tuners, peft.PeftModel, peft.peft_model, hotswap, save_and_load, peft.utils]
    owners += [module for name, module in sys.modules.items() if name.startswith("peft.tuners.bone")]
    owners += [vars(owner)[name] for owner in owners for name in ("BoneModel",) if name in vars(owner)]
    return (
        [dict(table) for table in tables],
        [{name: value for name, value in vars(owner).items() if type(value) is not type(sys)} for owner in owners],
        getattr(peft.tuners, "bone", None),
        {name: module for name, module in sys.modules.items() if name.startswith("peft.tuners")},
        list(PeftType), list(PeftType.__members__), hasattr(PeftType, "BONE"), list(hotswap.CONFIG_KEYS_TO_CHECK),
    )

import bone_peft_hook
bone_peft_hook.install = lambda: None
import bone_peft
from bone_peft.method.tuner import register
before = everything()
whole = register._explain_bone_in_model_cards
def fails(undo):
    whole(undo)
    raise OSError("half way")
register._explain_bone_in_model_cards = fails
try:
    bone_peft.register()
except OSError as error:
    print(error)
assert everything() == before
if "peft.tuners.bone" in sys.modules:
    import torch
    from peft.tuners.bone import BoneConfig, BoneModel
    model = BoneModel(torch.nn.Sequential(torch.nn.Linear(8, 8)), BoneConfig(r=4, target_modules=["0"]), "default")
    assert type(model) is BoneModel and BoneModel.__module__ == "peft.tuners.bone.model"
register._explain_bone_in_model_cards = whole
bone_peft.register()
from peft import BoneConfig
assert BoneConfig is bone_peft.BoneConfig
"""


def test_a_failure_half_way_leaves_peft_as_it_was():
    assert run(HALF_WAY).strip().endswith("half way")


OWN = """
import copy, io, tempfile
import torch
from torch import nn
from peft import BoneConfig as OldConfig, BoneModel as OldModel, PeftModel, get_peft_model, mapping
from peft.tuners.bone.layer import BoneLinear as OldLinear

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.b(self.a(x))

torch.manual_seed(0)
net, x = Net(), torch.randn(3, 8)
before = get_peft_model(copy.deepcopy(net), OldConfig(r=4, target_modules=["a"]))
nn.init.normal_(before.base_model.model.a.bone_block["default"])
written = OldConfig(r=4, init_weights="bat", target_modules=["a", "b"])

import bone_peft
from bone_peft import BoneConfig, BoneError, BoneLinear, BoneModel
import peft, peft.tuners, peft.tuners.bone
for owner in (peft, peft.tuners, peft.tuners.bone, peft.tuners.bone.config):
    assert getattr(owner, "BoneConfig", BoneConfig) is BoneConfig, owner
tables = (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, mapping.PEFT_TYPE_TO_TUNER_MAPPING)
assert [table["BONE"] for table in tables] == [BoneConfig, BoneModel] == [peft.BoneConfig, peft.BoneModel]
assert mapping.PEFT_TYPE_TO_PREFIX_MAPPING["BONE"] == "bone_"
assert "BONE" not in mapping.PEFT_TYPE_TO_MIXED_MODEL_MAPPING

# A config of PEFT's own, made before or after.
for config in (written, OldConfig(r=4, init_weights="bat", target_modules=["a", "b"])):
    model = get_peft_model(copy.deepcopy(net), config)
    assert type(model.base_model.model.a) is BoneLinear and type(model.peft_config["default"]) is BoneConfig
    assert model.peft_config["default"].init_weights == "bat" and model.peft_config["default"].r == 4
    model.add_adapter("other", OldConfig(r=8, target_modules=["b"]))
    assert type(model.peft_config["other"]) is BoneConfig
    assert type(OldModel(copy.deepcopy(net), config, "default")) is BoneModel

# A model that PEFT's own is in already works, is saved, and loads as ours; it takes no other adapter.
y = before(x)
assert type(copy.deepcopy(before).base_model.model.a) is OldLinear
with tempfile.TemporaryDirectory() as folder:
    before.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(copy.deepcopy(net), folder)
    assert type(loaded.base_model.model.a) is BoneLinear
    torch.testing.assert_close(loaded(x), y)
    for add in (lambda: before.load_adapter(folder, "b"), lambda: before.add_adapter("b", BoneConfig(r=4))):
        try:
            add()
        except BoneError as error:
            assert "import bone_peft before" in str(error)
        else:
            raise AssertionError("an adapter of ours in a model of PEFT's own")
torch.testing.assert_close(before(x), y)
print("all of it")
"""


@pytest.mark.skipif(not needs("peft", "0.19").args[0], reason="PEFT from 0.19 on has no Bone")
def test_ours_takes_the_place_of_pefts_own():
    assert run(OWN).strip() == "all of it"


@pytest.mark.parametrize("old", ["0.14.0", "0.17.1", "0.9.0"])
def test_a_peft_that_is_too_old_is_said(monkeypatch, old):
    monkeypatch.setattr(compat, "version", lambda _: old)
    with pytest.raises(ImportError, match=rf"^bone-peft works with PEFT 0\.18 and newer, and {old} is installed: type"):
        compat._check_peft()


@pytest.mark.parametrize("new", ["0.18.0", "0.18.1", "0.21.2", "1.0.0", "0.22.0.dev0", "0.18rc1"])
def test_others_are_not_refused(monkeypatch, new):
    monkeypatch.setattr(compat, "version", lambda _: new)
    compat._check_peft()
