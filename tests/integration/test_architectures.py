"""Bone on tiny models of architectures that trouble adapters. ``checks/architectures`` documents the long run."""

import pytest
from checks.architectures.results import outcome
from checks.architectures.verdict import METHODS, examine

TROUBLE = {
    ("causal-lm", "llama"): "none",
    ("causal-lm", "gpt2"): "Conv1D, whose weight is transposed",
    ("causal-lm", "falcon"): "adds to a layer's output in place",
    ("causal-lm", "mamba"): "reads dt_proj.weight and does not call the layer",
    ("causal-lm", "llama4"): "a router that is an nn.Linear and returns a tuple",
    ("causal-lm", "gemma3n_text"): "clamps a layer's weight while it trains",
    ("causal-lm", "zamba"): "one weight in several layers",
    ("causal-lm", "qwen3_moe"): "experts in one tensor",
    ("seq2seq", "t5"): "asks for wo.weight.dtype",
    ("masked-lm", "mobilebert"): "concatenates a layer's weight with the embedding's",
    ("sequence-classification", "roberta"): "a head of two layers that is trained whole",
    ("vision", "siglip_vision_model"): "nn.MultiheadAttention reads out_proj.weight",
    ("speech", "wavlm"): "gives its layers' weights to F.multi_head_attention_forward",
}


@pytest.mark.parametrize(("kind", "name"), TROUBLE, ids=lambda part: part)
@pytest.mark.filterwarnings("ignore")
def test_is_right_or_refused(kind, name):
    bare, *verdicts = examine(kind, name, list(METHODS))
    assert "fails" not in bare, bare
    methods = {method: tried for verdict in verdicts for method, tried in verdict.items()}
    assert outcome({"methods": methods}) in ("right", "refused"), (TROUBLE[kind, name], methods)
