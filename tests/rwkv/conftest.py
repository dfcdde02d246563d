"""A small RWKV-7 in a ``.pth`` file, with a vocabulary of its own beside it."""

import sys
from pathlib import Path
from types import ModuleType

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


def gradients(model, ids) -> list[torch.Tensor]:
    return list(torch.autograd.grad(model(ids, labels=ids).loss, [*model.parameters()]))


def assert_checkpointing_changes_nothing(model, ids) -> None:
    expected = gradients(model, ids)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        found = gradients(model, ids)
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def assert_same_with_gradients(one, other, values, mask, rtol=1e-10, atol=1e-10) -> None:
    """Two forms of a recurrence: outputs, last states, and the gradients of all inputs; as near as float64 is."""
    expected, found = one(*values, mask), other(*values, mask)
    directions = [torch.randn_like(x) for x in expected]
    wanted = torch.autograd.grad(expected, values, directions)
    got = torch.autograd.grad(found, values, directions)
    for a, b in zip((*expected, *wanted), (*found, *got), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def stand_in_for(monkeypatch, function) -> None:
    """Have ``fla.ops.NAME.chunk_NAME`` be ``function``, which is called so."""
    place = f"fla.ops.{function.__name__.removeprefix('chunk_')}"
    module = ModuleType(place)
    setattr(module, function.__name__, function)
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, place, module)


def move(model) -> None:
    """Give an adapter, and all that is trained beside it, other values."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.03)


@pytest.fixture(scope="session", autouse=True)
def short_samples():
    """Runs answer sample questions in the end, which is no test's concern for so many tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bone_peft.runs.training.finish._TOKENS", 8)
        yield
