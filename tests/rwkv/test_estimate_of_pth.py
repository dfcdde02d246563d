"""What an adapter on an RWKV's ``.pth`` file costs, from the shapes in it."""

import pytest
import torch
from peft import get_peft_model

from bone_peft import BoneConfig
from bone_peft.costs.estimation import estimate
from bone_peft.errors import BoneError
from bone_peft.io.stored import StoredTensor
from bone_peft.rwkv.pth_model import load_model, save_model

from .conftest import small_model as small_x070
from .test_x060 import small_model as small_x060


@pytest.fixture(params=[small_x070, small_x060], ids=["x070", "x060"])
def pth(request, tmp_path):
    save_model(request.param(), tmp_path / "base.pth")
    return str(tmp_path / "base.pth")


def trained_by(config, pth):
    return get_peft_model(load_model(pth), config).get_nb_trainable_parameters()[0]


def test_it_counts_what_is_trained_and_reads_no_weights(pth, monkeypatch):
    options = {"r": 8, "init_weights": "bat"}
    trained = trained_by(BoneConfig(target_modules="all-linear", **options), pth)
    monkeypatch.setattr(StoredTensor, "read", lambda self: pytest.fail("weights were read"))
    found = estimate(pth, adapter=options | {"target_modules": "all-linear"}, length=32, dtype=torch.float32)
    own = found.costs[0]
    assert own.trainable == trained
    assert own.training_bytes > found.base_bytes + own.optimizer_bytes


def test_all_linear_layers_are_those_that_are_adapted_where_nothing_is_said(pth):
    assert trained_by(BoneConfig(r=8, target_modules="all-linear"), pth) == trained_by(BoneConfig(r=8), pth)


def test_a_file_that_is_missing_is_one_sentence(tmp_path):
    with pytest.raises(BoneError, match=r"give the path of RWKV's \.pth file"):
        estimate(str(tmp_path / "no.pth"))
