"""The tables of the 'Bone (Bottleneck Network)' guide, and counts against models that are really built."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from bone_peft import BoneError, load_base
from bone_peft.cli.main import app
from bone_peft.costs.estimation import estimate, recommended, write_chart
from bone_peft.costs.estimation.memory import saved_bytes

from ..files.test_gguf_experts import write_gguf
from ..models import config_for, llama
from ..versions import needs

ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]


def costs(*args, **kwargs):
    return {cost.method: cost for cost in estimate(*args, **kwargs).costs}


@pytest.mark.parametrize(
    "model,parameters,mib",
    [("opt-125m", 37_748_736, 72), ("opt-350m", 100_663_296, 192), ("facebook/opt-1.3b", 201_326_592, 384)],
)
def test_the_guides_bottleneck(model, parameters, mib):
    found = costs(
        model, target_modules=ATTENTION, sizes={"Bottleneck": 128 * 4}, adapter_dtype=torch.float16, memory=False
    )["Bottleneck"]
    assert found.trainable == parameters
    assert found.file_bytes == mib * 2**20
    assert 0.1530 <= round(found.share, 4) <= 0.3039


def test_the_guides_shares_and_its_lora():
    small, large = (
        costs(m, target_modules=ATTENTION, sizes={"Bottleneck": 512, "LoRA": 32}, memory=False)
        for m in ("opt-350m", "opt-1.3b")
    )
    assert [round(100 * c["Bottleneck"].share, 2) for c in (large, small)] == [15.30, 30.39]
    assert [round(100 * c["LoRA"].share, 2) for c in (large, small)] == [0.96, 1.90]
    assert large["LoRA"].file_bytes == 48 * 2**20


def test_what_it_recommends_costs():
    """Its own settings, on its own modules, next to its table."""
    for model, parameters in (("opt-125m", 2_359_296), ("opt-350m", 6_291_456), ("opt-1.3b", 12_582_912)):
        found = costs(model, target_modules=["q_proj", "v_proj"], memory=False)["Bottleneck"]
        assert (found.size, found.trainable) == (64, parameters)


@pytest.mark.parametrize(
    "parameters,size,alpha",
    [
        (125e6, (32, 32), (2.0, 2.0)),
        (1.3e9, (32, 64), (2.0, 4.0)),
        (3e9, (64, 64), (2.0, 2.0)),
        (7e9, (64, 128), (1.0, 2.0)),
    ],
)
def test_recommended(parameters, size, alpha):
    assert (recommended(int(parameters)).size, recommended(int(parameters)).alpha) == (size, alpha)


def test_counts_are_those_of_built_models(tmp_path):
    llama().save_pretrained(tmp_path)
    found = estimate(str(tmp_path), sizes=dict.fromkeys(("Bone", "Bat", "Bat, input-shared", "Bottleneck", "LoRA"), 8))
    configs = [config_for(v, target_modules="all-linear") for v in ("bone", "bat", "bat-input", "bottleneck")]
    for cost, config in zip(found.costs, [*configs, LoraConfig(r=8, target_modules="all-linear")], strict=True):
        trainable, _ = get_peft_model(llama(), config).get_nb_trainable_parameters()
        assert cost.trainable == trainable
    assert found.parameters == sum(p.numel() for p in llama().parameters())


@needs("transformers", "5.17")
def test_a_gguf_file_is_what_it_is_loaded_as(tmp_path):
    base = str(tmp_path / "base.gguf")
    write_gguf(tmp_path / "base.gguf")
    found = estimate(
        base, sizes={"Bone": 8, "Bat": 8, "Bat, input-shared": 8, "LoRA": 4, "Bottleneck": 4}, memory=False
    )
    model, _ = load_base(base)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {name.rpartition(".")[2] for name in found.layers} >= {"q_proj", "o_proj"}


def test_a_size_that_does_not_divide(tmp_path):
    llama().save_pretrained(tmp_path)
    found = costs(str(tmp_path), sizes={"Bat": 7, "Bone": 7}, memory=False)
    assert found["Bat"].refusal is not None and found["Bone"].trainable > 0


@pytest.mark.parametrize("variant", ["bone", "bottleneck"])
def test_memory_is_what_autograd_keeps(variant, monkeypatch):
    """Against a real step, whose saved tensors are counted: the estimate is on the safe side, by a fiftieth at most."""
    # The estimate takes the plain path, which keeps a little more than the fast ones.
    monkeypatch.setattr("bone_peft.method.ops.dispatch.forced", "plain")
    config = config_for(variant)
    with torch.device("meta"):
        outline = llama().to(torch.float32)
    guess = saved_bytes(outline, config, torch.float32, batch=2, length=16)

    model = get_peft_model(llama(), config).train()
    model.config.use_cache = False
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    inputs = torch.randn(2, 16, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(inputs_embeds=inputs, labels=torch.randint(0, 64, (2, 16)))
    for tensor in (*model.parameters(), *model.buffers()):
        kept.pop(tensor.untyped_storage()._cdata, None)
    measured = sum(storage.nbytes() for storage in kept.values())
    assert measured <= guess <= 1.02 * measured


def test_70b_takes_no_memory():
    found = costs("llama-3.1-70b", memory=False)
    assert found["Bone"].trainable == 80 * 64 * (8192 + 1024 + 1024 + 8192 + 28672 + 28672 + 8192)


def test_chart(tmp_path):
    found = estimate("opt-125m", memory=False)
    for name in ("chart.svg", "chart.png"):
        write_chart(found, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000
    assert "LoRA" in (tmp_path / "chart.svg").read_text() or "<path" in (tmp_path / "chart.svg").read_text()
    with pytest.raises(BoneError, match=r"\.svg or \.png"):
        write_chart(found, tmp_path / "chart.gif")


def test_the_bars_of_memory_are_the_table(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("bone_peft.costs.estimation.chart.save_figure", lambda figure, path: drawn.append(figure))
    found = estimate("opt-125m", length=64)
    write_chart(found, tmp_path / "chart.svg")
    bars = drawn[0].axes[1]
    ends = {}
    for names, part in zip([list(bars.get_yticklabels())] * 3, bars.containers, strict=True):
        for name, bar in zip(names, part, strict=True):
            ends[name.get_text()] = bar.get_x() + bar.get_width()
            assert bar.get_width() > 0
    assert ends == {
        f"{cost.method}, {cost.size}": pytest.approx(cost.training_bytes / 2**30)
        for cost in found.costs
        if cost.refusal is None
    }
    write_chart(estimate("opt-125m", memory=False), tmp_path / "chart.svg")
    assert len(drawn[1].axes) < len(drawn[0].axes)


def test_the_command():
    result = CliRunner().invoke(app, ["estimate", "opt-125m", "--no-memory", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["parameters"] == 125_239_296
    result = CliRunner().invoke(app, ["estimate", "opt-125m", "--no-memory", "--bottleneck", "512"])
    assert "Recommended for < 500M: bottleneck_size 32, bottleneck_alpha 2.0" in result.output.replace("\n", " ")


def test_a_config_that_asks_for_too_much(tmp_path):
    llama().config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2**31}))
    with pytest.raises(BoneError, match="num_hidden_layers"):
        estimate(str(tmp_path))
