"""Bases and rows, made once for all tests of this folder."""

import pytest
import torch

from bone_peft.files.bases import load_base

from .tiny import make_base, sums, write_rows


@pytest.fixture(scope="session")
def chat_base(tmp_path_factory):
    return str(make_base(tmp_path_factory.mktemp("bases") / "chat", chat=True))


@pytest.fixture(scope="session")
def plain_base(tmp_path_factory):
    return str(make_base(tmp_path_factory.mktemp("bases") / "plain", chat=False))


@pytest.fixture
def base(tmp_path):
    """A model with opinions: from its random start it says the same token for ever."""
    model, tokenizer = load_base(str(make_base(tmp_path / "base", chat=False)), dtype="float32")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model, tokenizer


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    return str(write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", sums(24)))


@pytest.fixture(scope="session", autouse=True)
def short_samples():
    """Runs answer sample questions in the end, which is no test's concern for so many tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bone_peft.runs.training.finish._TOKENS", 8)
        yield


@pytest.fixture
def study_content(plain_base, tmp_path):
    """A study of two methods in a few steps, as YAML has it."""
    rows, test = (
        str(write_rows(tmp_path / f"{n}.jsonl", sums(12, start))) for n, start in (("train", 0), ("test", 40))
    )
    return {
        "base": plain_base,
        "data": rows,
        "eval_data": test,
        "fields": ["query", "response"],
        "dtype": "float32",
        "methods": {"bat": [0.01], "lora": [0.01, 0.02]},
        "seeds": 2,
        "widen": 1,
        "r": 8,
        "answers": 3,
        "timed_steps": 8,
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "gradient_checkpointing": False},
        "out": str(tmp_path / "study"),
    }
