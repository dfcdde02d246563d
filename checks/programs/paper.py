"""The paper's own ``finetune.py``, byte for byte: does it learn with ours what it learns with PEFT's own?

    python -m checks.programs.paper --checkout Bone

``Bone`` is a clone of https://github.com/JL-er/Bone. The arguments are those of its ``run_bone.sh``, but for paths,
sizes, launcher and ``--use_cpu``. Run twice in float32 and twice in bfloat16: as it is, and after ``bone activate``
(which is undone).
"""

import re
import sys
import tempfile
from pathlib import Path

from .environment import activated, arguments, python_of, run
from .tiny import make_base, versions, write_rows

_NEEDS = ("peft==0.18.1", "transformers==4.57.6", "datasets==4.8.4")
_LIMITS = {"False": 1e-5, "True": 1e-2}  # of --bf16: how far losses may be apart, relatively


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--checkout", type=Path, required=True)
    given = parser.parse_args()
    python = python_of(given, "paper", *_NEEDS)
    wrong = 0
    print(versions(python, "peft", "transformers", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_base(work / "base")
        write_rows(work / "data/rows.jsonl", "query", "response")
        for bf16, limit in _LIMITS.items():
            with activated(python, False):
                own, own_seconds = _run(python, given.checkout, work, bf16)
            with activated(python):
                ours, seconds = _run(python, given.checkout, work, bf16)
            apart = max(abs(a - b) / a for a, b in zip(own, ours, strict=True))
            wrong += apart > limit
            print(
                f"--bf16 {bf16}: {len(ours)} losses, {own[0]} to {own[-1]}; ours apart by {apart:.1e} at most "
                f"(allowed {limit}); {own_seconds:.1f} s with PEFT's own, {seconds:.1f} s with ours"
            )
    return int(wrong > 0)


def _run(python: str, checkout: Path, work: Path, bf16: str) -> tuple[list[float], float]:
    """Every logged loss, and the seconds of training."""
    launched = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    options = {
        "model_name_or_path": work / "base",
        "use_bone": True,
        "target_modules": "q_proj,v_proj,k_proj,o_proj,gate_proj,down_proj,up_proj",
        "bone_r": 64,
        "data_path": work / "data",
        "dataset_split": "train[:200]",
        "output_dir": work / "out",
        "num_train_epochs": 1,
        "model_max_length": 512,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "save_strategy": "no",
        "learning_rate": "2e-3",
        "weight_decay": "0.",
        "warmup_ratio": "0.",
        "logging_steps": 1,
        "lr_scheduler_type": "cosine",
        "merge": True,
        "use_cpu": True,
        "bf16": bf16,
        "report_to": "none",
        "seed": 1,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [*launched, "finetune.py", *flags, "--dataset_field", "query", "response"]
    text = run(command, work, cwd=checkout)
    losses = [float(loss) for loss in re.findall(r"'loss': ([0-9.]+)", text)]
    seconds = re.search(r"'train_runtime': ([0-9.]+)", text)
    if not losses or seconds is None:
        raise SystemExit(f"finetune.py logged nothing:\n{text[-2000:]}")
    return losses, float(seconds[1])


if __name__ == "__main__":
    sys.exit(main())
