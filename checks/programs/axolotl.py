"""Axolotl takes methods by plugins: with one of 20 lines, ``axolotl train`` and ``axolotl merge-lora`` know Bone.

    python -m checks.programs.axolotl

The plugin is ``scripts/axolotl_bone.py``. Run after ``bone activate`` (which is undone), on a CPU.
"""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bone_peft import inspect_adapter, merge

from .environment import activated, arguments, python_of, run
from .tiny import make_base, tensors_of, versions, write_rows

_NEEDS = ("axolotl==0.19.0",)
_SCRIPTS = Path(__file__).with_name("scripts")


def main() -> int:
    python = python_of(arguments(__doc__).parse_args(), "axolotl", *_NEEDS)
    print(versions(python, "axolotl", "transformers", "peft", "trl", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = make_base(work / "base")
        rows = write_rows(work / "rows.jsonl", "instruction", "output")
        settings = {
            "base_model": str(base),
            "plugins": ["axolotl_bone.BonePlugin"],
            "adapter": "bone",
            "lora_r": 16,
            "lora_target_modules": ["q_proj", "v_proj"],
            "datasets": [{"path": str(rows), "ds_type": "json", "type": "alpaca"}],
            "dataset_prepared_path": str(work / "prepared"),
            "output_dir": str(work / "out"),
            "sequence_len": 128,
            "micro_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "max_steps": 6,
            "learning_rate": 1e-2,
            "optimizer": "adamw_torch",
            "lr_scheduler": "constant",
            "logging_steps": 1,
            "attn_implementation": "sdpa",
            "bf16": False,
            "fp16": False,
            "tf32": False,
            "float32": True,
            "merge_method": "legacy",
        }
        with activated(python):
            said = _run(python, work, settings, "train", "--launcher", "python")
            _run(python, work, settings | {"lora_model_dir": str(work / "out")}, "merge-lora")
        found = inspect_adapter(work / "out")
        merge(str(base), str(work / "out"), work / "merged")
        theirs, ours, before = tensors_of(work / "out/merged"), tensors_of(work / "merged"), tensors_of(base)
    losses = [float(loss) for loss in re.findall(r"'loss': '?([0-9.]+)", said)]
    moved = sum(not torch.equal(ours[name], before[name]) for name in before)
    apart = max((theirs[name] - ours[name]).abs().max().item() for name in theirs.keys() | ours)
    print(
        f"train: {len(losses)} losses, {losses[0]} to {losses[-1]}; adapter: {found.format}, {found.variant}, "
        f"{len(found.modules)} modules; merge-lora: {moved} tensors moved, apart from bone merge by {apart:.1e} at most"
    )
    return int(losses[-1] >= losses[0] or moved != len(found.modules) or apart > 0)


def _run(python: str, work: Path, settings: dict[str, Any], command: str, *flags: str) -> str:
    file = work / f"{command}.yaml"
    file.write_text(json.dumps(settings))  # JSON is YAML too
    program = [str(Path(python).with_name("axolotl")), command, str(file), *flags]
    return run(program, work, cwd=work, PYTHONPATH=str(_SCRIPTS), AXOLOTL_DO_NOT_TRACK="1")


if __name__ == "__main__":
    sys.exit(main())
