"""A small RWKV-7 in a ``.pth`` file, with a vocabulary of its own beside it."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bone_peft.cli.main import app
from bone_peft.rwkv.fresh import fresh_model
from bone_peft.rwkv.pth_model import save_model
from bone_peft.rwkv.tokenizer import VOCABULARY, world_vocabulary

ROWS = 512
LOW_RANK = {"decay_low_rank_dim": 16, "a_low_rank_dim": 16, "v_low_rank_dim": 16, "gate_low_rank_dim": 16}


def small_model():
    """Two layers of width 128, every tensor away from its initial value, so that each of them matters."""
    torch.manual_seed(0)
    model = fresh_model(128, 2, ROWS, **LOW_RANK)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def run(*arguments) -> str:
    """What a command that succeeds prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """The model in float32."""
    path = tmp_path_factory.mktemp("rwkv") / "base.pth"
    save_model(small_model(), path)
    lines = world_vocabulary().read_text(encoding="utf-8").splitlines(keepends=True)
    path.with_name(VOCABULARY).write_text("".join(lines[: ROWS - 1]), encoding="utf-8")
    return path


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, ROWS, (3, 37))
