"""TRL's SFT, DPO and GRPO with a Bone and a Bat config, and Transformers' own ``load_adapter`` with what they saved.

    python -m checks.programs.trainers

In the environment that it is started in, on a CPU, with a tiny base, and with a tiny mixture of experts.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from bone_peft import BoneConfig

from .tiny import SUMS, make_base, make_mixture, versions

_STEPS = 6
_VARIANTS: dict[str, dict[str, Any]] = {"Bone": {"r": 16}, "Bat": {"r": 16, "init_weights": "bat"}}
_COMMON: dict[str, Any] = {
    "max_steps": _STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def sft(base: Path, out: Path) -> Any:
    rows = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a, b in SUMS]
    args = SFTConfig(output_dir=str(out), **_COMMON)
    return lambda config: SFTTrainer(str(base), args=args, train_dataset=Dataset.from_list(rows), peft_config=config)


def dpo(base: Path, out: Path) -> Any:
    rows = [{"prompt": f"{a} + {b} =", "chosen": f" {a + b}", "rejected": f" {a - b}"} for a, b in SUMS]
    args = DPOConfig(output_dir=str(out), **_COMMON)
    return lambda config: DPOTrainer(str(base), args=args, train_dataset=Dataset.from_list(rows), peft_config=config)


def grpo(base: Path, out: Path) -> Any:
    rows = Dataset.from_list([{"prompt": f"{a} + {b} ="} for a, b in SUMS])
    args = GRPOConfig(output_dir=str(out), num_generations=4, max_completion_length=8, **_COMMON)

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(sum(letter.isdigit() for letter in text)) + len(text) * 1e-3 for text in completions]

    return lambda config: GRPOTrainer(str(base), reward_funcs=reward, args=args, train_dataset=rows, peft_config=config)


_TRAINERS: dict[str, Callable[[Path, Path], Any]] = {"SFT": sft, "DPO": dpo, "GRPO": grpo}


def tried(base: Path, out: Path, make: Callable[[Path, Path], Any], variant: dict[str, Any]) -> str:
    """What a trainer did to an adapter, in words; an error if that is not training."""
    trainer = make(base, out)(BoneConfig(target_modules="all-linear", task_type="CAUSAL_LM", **variant))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    moved = {name for name, p in trainer.model.named_parameters() if name in before and not p.equal(before[name])}
    assert len(losses) == _STEPS and moved == set(before), f"{len(before) - len(moved)} tensors did not move"
    trainer.save_model(str(out))
    tokens = AutoTokenizer.from_pretrained(base)("What is 3 + 4?", return_tensors="pt")
    bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = bare(**tokens).logits
    want = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), out)(
        **tokens
    ).logits
    bare.load_adapter(str(out))
    got = bare(**tokens).logits
    assert not torch.allclose(got, plain) and torch.allclose(got, want, atol=1e-5)
    return f"loss {losses[0]:.4f} to {losses[-1]:.4f}; load_adapter() gives what PeftModel gives"


def main() -> int:
    warnings.filterwarnings("ignore")
    wrong = 0
    print(versions(sys.executable, "trl", "transformers", "peft", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        bases = {"Llama": base, "Qwen3-MoE": make_mixture(base, Path(folder) / "mixture")}
        for (name, make), (variant, options), (kind, base) in product(
            _TRAINERS.items(), _VARIANTS.items(), bases.items()
        ):
            try:
                said = tried(base, Path(folder) / name / variant / kind, make, options)
            except Exception as error:
                wrong += 1
                said = f"FAILED: {type(error).__name__}: {error}"
            print(f"{name}, {variant}, {kind}: {said}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
