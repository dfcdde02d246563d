"""The paper's own ``finetune.py``, byte for byte: does it learn with ours what it learns with PEFT's own?

    python -m checks.programs.paper --checkout Bone --python ENVIRONMENT/bin/python

``Bone`` is a clone of https://github.com/JL-er/Bone; ENVIRONMENT has PEFT 0.18, Transformers 4.57, datasets and
bone-peft. The arguments are those of its ``run_bone.sh``, but for paths, sizes, launcher and ``--use_cpu``. Run twice
in float32 and twice in bfloat16: as it is, and after ``bone activate`` (which is undone).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from .tiny import make_base, versions, write_rows

_LIMITS = {"False": 1e-5, "True": 1e-2}  # of --bf16: how far losses may be apart, relatively


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    given = parser.parse_args()
    wrong = 0
    print(versions(str(given.python.absolute()), "peft", "transformers", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_base(work / "base")
        write_rows(work / "data/rows.jsonl", "query", "response")
        for bf16, limit in _LIMITS.items():
            own, own_seconds = _run(given, work, bf16, active=False)
            ours, seconds = _run(given, work, bf16, active=True)
            apart = max(abs(a - b) / a for a, b in zip(own, ours, strict=True))
            wrong += apart > limit
            print(
                f"--bf16 {bf16}: {len(ours)} losses, {own[0]} to {own[-1]}; ours apart by {apart:.1e} at most "
                f"(allowed {limit}); {own_seconds:.1f} s with PEFT's own, {seconds:.1f} s with ours"
            )
    return int(wrong > 0)


def _run(given: argparse.Namespace, work: Path, bf16: str, active: bool) -> tuple[list[float], float]:
    """Every logged loss, and the seconds of training."""
    bone = [str(given.python.absolute()), "-m", "bone_peft"]
    subprocess.run([*bone, "activate" if active else "deactivate"], check=True, capture_output=True)
    try:
        return _losses(given, work, bf16)
    finally:
        subprocess.run([*bone, "deactivate"], check=True, capture_output=True)


def _losses(given: argparse.Namespace, work: Path, bf16: str) -> tuple[list[float], float]:
    launched = [str(given.python.absolute()), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    arguments = {
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
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(work / "hf"),
    }
    done = subprocess.run(
        [*launched, "finetune.py", *flags, "--dataset_field", "query", "response"],
        cwd=given.checkout,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stdout + done.stderr
    losses = [float(loss) for loss in re.findall(r"'loss': ([0-9.]+)", text)]
    seconds = re.search(r"'train_runtime': ([0-9.]+)", text)
    if done.returncode or not losses or seconds is None:
        raise SystemExit(f"finetune.py failed:\n{text[-2000:]}")
    return losses, float(seconds[1])


if __name__ == "__main__":
    sys.exit(main())
