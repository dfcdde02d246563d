"""A decoder layer with adapters compiles as one graph, and computes the same."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from bone_peft.costs.bench.contestants import Setting, contestant
from bone_peft.costs.bench.shapes import random_model
from bone_peft.costs.bench.training_step import base_layers
from bone_peft.method.ops import bone_layer

VARIANTS = ["bone", "bat", "bat-input", "bottleneck"]


# What runs by operators of ours in compiled code too.
OWN = ("bone", "bat", "bat-input")


@pytest.mark.parametrize("name", [*VARIANTS, "bone of few tokens"])
def test_a_decoder_layer_is_one_graph(name, monkeypatch):
    own = name in OWN
    if name.endswith("few tokens"):
        monkeypatch.setattr(bone_layer, "_few_tokens", lambda x, block: True)
        name = "bone"
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    base = random_model("tiny", None, torch.float32, "cpu")
    model = contestant(name, base, Setting(r=16, lora_r=8)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(256, (2, 16))
    embedded = base.get_input_embeddings()(ids).detach().requires_grad_()

    def gradients():
        loss = model(inputs_embeds=embedded, labels=ids, use_cache=False).loss
        return [loss.detach(), *torch.autograd.grad(loss, [embedded, *trained])]

    eager = gradients()
    operators: set[str] = set()

    def look(graph, inputs):
        operators.update(str(node.target) for node in graph.graph.nodes if "bone_peft" in str(node.target))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=look, bw_compiler=look)
    for layer in base_layers(model):
        layer.compile(fullgraph=True, dynamic=False, backend=backend)
    compiled = gradients()
    assert bool(operators) == own
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for found, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["bone", "bat", "bat-input"])
def test_on_a_gpu_the_compiler_changes_no_gradient(name, monkeypatch):
    monkeypatch.setattr(bone_layer, "_few_tokens", lambda x, block: False)
    torch._dynamo.reset()
    base = random_model("smollm2", 2, torch.bfloat16, "cuda")
    model = contestant(name, base, Setting(r=64, lora_r=8)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.02)
    ids = torch.randint(49152, (2, 150), device="cuda")
    embedded = base.get_input_embeddings()(ids).detach().requires_grad_()

    def gradients():
        loss = model(inputs_embeds=embedded, labels=ids, use_cache=False).loss
        return torch.autograd.grad(loss, [embedded, *trained])

    eager = gradients()
    for layer in base_layers(model):
        layer.compile(fullgraph=True, dynamic=False)
    for found, expected in zip(gradients(), eager, strict=True):
        assert float((found.double() - expected.double()).norm() / expected.double().norm()) < 5e-2
