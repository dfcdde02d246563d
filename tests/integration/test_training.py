"""Bone under everything that people train with."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoTokenizer

from ..models import ALL_VARIANTS, config_for, llama, randomize, tokens
from ..runs.tiny import make_base

variants = pytest.mark.parametrize("variant", ALL_VARIANTS)


def gradients(model, ids):
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@variants
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(variant, use_reentrant):
    model = randomize(get_peft_model(llama(), config_for(variant))).train()
    ids = tokens()
    expected = gradients(model, ids)
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.base_model.model.enable_input_require_grads()
    assert_same_gradients(gradients(model, ids), expected)


@variants
def test_compiled_in_one_graph(variant):
    model = randomize(get_peft_model(llama(), config_for(variant))).train()
    ids = tokens()
    expected = gradients(model, ids)
    torch._dynamo.reset()
    layer = model.base_model.model.model.layers[0]
    layer.compile(fullgraph=True)
    assert_same_gradients(gradients(model, ids), expected)


@variants
def test_input_embeddings_get_their_gradient(variant):
    model = randomize(get_peft_model(llama(), config_for(variant)))
    embeddings = torch.randn(2, 5, 32, requires_grad=True)
    adapted = model(inputs_embeds=embeddings).logits
    adapted.square().sum().backward()
    through_adapter = embeddings.grad.clone()
    embeddings.grad = None
    model.merge_and_unload()(inputs_embeds=embeddings).logits.square().sum().backward()
    torch.testing.assert_close(through_adapter, embeddings.grad, atol=1e-4, rtol=1e-4)


def test_trainer(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = get_peft_model(llama(), config_for("bat"))
    ids = tokens(rows=8)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})
    arguments = TrainingArguments(
        tmp_path,
        max_steps=6,
        learning_rate=5e-3,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        save_steps=6,
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    checkpoint = tmp_path / "checkpoint-6"
    base = llama()
    base.load_state_dict(
        {n.replace(".base_layer", ""): t for n, t in model.base_model.model.state_dict().items() if "bone_" not in n}
    )
    loaded = PeftModel.from_pretrained(base, checkpoint).eval()
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


@variants
def test_sft_trainer(variant, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *(str(n) for n in range(40)), "+", "="])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    data = Dataset.from_list([{"prompt": f"{a} + {a} =", "completion": f" {2 * a}"} for a in range(16)])
    arguments = SFTConfig(
        tmp_path,
        max_steps=8,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=16,
    )
    trainer = SFTTrainer(llama(), arguments, train_dataset=data, processing_class=fast, peft_config=config_for(variant))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


DDP = """
    import torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from peft import get_peft_model
    from tests.models import ALL_VARIANTS, config_for, llama, randomize

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for variant in ALL_VARIANTS:
        torch.manual_seed(0)
        model = randomize(get_peft_model(llama(), config_for(variant)))
        ids = torch.randint(3, 64, (4, 9))

        model(ids, labels=ids).loss.backward()
        expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()

        ddp = DistributedDataParallel(model)
        half = ids[rank * 2 : rank * 2 + 2]
        ddp(half, labels=half).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)
        print(f"<{variant}>", flush=True)
    dist.destroy_process_group()
"""


def test_two_processes_get_the_gradients_of_one(tmp_path):
    script = tmp_path / "ddp.py"
    script.write_text(textwrap.dedent(DDP))
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(launch, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    for variant in ALL_VARIANTS:
        assert result.stdout.count(f"<{variant}>") == 2


@pytest.mark.parametrize("variant", ["bone", "bat"])
@pytest.mark.parametrize("kind", ["DPO", "GRPO"])
def test_preferences_refer_to_the_adapter_that_was_given(variant, kind, tmp_path):
    """A trained adapter on a mixture of experts: the reference is that adapter, and stays as it was."""
    trl = pytest.importorskip("trl")
    qwen = pytest.importorskip("transformers.models.qwen3_moe")
    tokenizer = AutoTokenizer.from_pretrained(make_base(tmp_path / "base", chat=False))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = qwen.Qwen3MoeConfig(
        **sizes, num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2, vocab_size=len(tokenizer)
    )
    model = get_peft_model(
        qwen.Qwen3MoeForCausalLM(config), config_for(variant, r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    randomize(model, std=0.05)
    given = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert any("experts" in name for name in given)
    common = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    if kind == "DPO":
        rows = [{"prompt": f"{a}+1=", "chosen": f"{a + 1}", "rejected": f"{a}"} for a in range(10, 26)]
        args = trl.DPOConfig(**common)
        trainer = trl.DPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    else:
        rows = [{"prompt": f"{a}+1="} for a in range(10, 26)]
        args = trl.GRPOConfig(**common, num_generations=4, max_completion_length=8, beta=0.5)
        trainer = trl.GRPOTrainer(
            model,
            reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    if kind == "DPO":
        assert first["rewards/chosen"] == first["rewards/rejected"] == pytest.approx(0, abs=1e-5)
        assert abs(second["rewards/chosen"]) > 1e-5
    else:
        assert first["kl"] == pytest.approx(0, abs=1e-5)
        assert second["kl"] > 1e-5
    after = dict(trainer.model.named_parameters())
    references = [name for name in after if ".ref." in name or name.endswith(".ref")]
    assert references
    for name in references:
        torch.testing.assert_close(after[name], given[name.replace("ref", "default")], rtol=0, atol=0)
    assert not any(after[name].equal(value) for name, value in given.items() if "experts" in name)
