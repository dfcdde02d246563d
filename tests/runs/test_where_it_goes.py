"""Losses in other programs, and the adapter on the Hub: asked for by name, and what is missing is said first."""

import huggingface_hub
import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from bone_peft.errors import BoneError
from bone_peft.runs.training import train

from .test_train import recipe


def test_losses_go_where_they_are_asked_to(plain_base, rows_file, tmp_path, monkeypatch):
    class Log(TrainerCallback):
        seen = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                self.seen.append(logs["loss"])

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Log)
    result = train(recipe(plain_base, rows_file, tmp_path / "run", log=["trackio", "tensorboard"]))
    assert Log.seen == [entry["loss"] for entry in result.history]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"log": ["paper"]}, "'paper' is none of .*wandb"),
        ({"log": "wandb"}, "must be a list of names"),
        ({"log": ["neptune"]}, "neptune cannot be used .*nstall"),
        ({"push_to_hub": "me/mine"}, "The Hub cannot take me/mine .*offline.*hf auth login"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(plain_base, rows_file, tmp_path, monkeypatch, values, says):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BoneError, match=f"(?is){says}"):
        train(recipe(plain_base, rows_file, tmp_path / "run", **values))
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_the_adapter_is_pushed_when_all_is_done(plain_base, rows_file, tmp_path, monkeypatch, fails):
    done = []

    def upload(self, folder_path, repo_id, commit_message):
        assert (tmp_path / "run" / "report.html").is_file()
        done.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
        if fails:
            raise OSError("the line is dead")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, exist_ok: done.append(name))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    plan = recipe(plain_base, rows_file, tmp_path / "run", push_to_hub="me/mine")
    if fails:
        with pytest.raises(
            BoneError, match=r"is whole, but it could not be pushed \(the line is dead\): hf upload me/"
        ):
            train(plan)
    else:
        train(plan)
    assert done[0] == "me/mine" and done[1][0] == "me/mine"
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(done[1][1])
