"""ms-swift's ``swift sft --tuner_type bone`` and ``swift export``: is its merged model what ``bone merge`` makes?

    python -m checks.programs.swift

The flags are those of its own ``examples/train/tuners/bone/train.sh``, but for the model, the data, their sizes, the
learning rate and ``--use_cpu``. Run after ``bone activate`` (which is undone).
"""

import re
import sys
import tempfile
from pathlib import Path

import torch

from bone_peft import inspect_adapter, merge

from .environment import activated, arguments, python_of, run
from .tiny import make_base, tensors_of, versions, write_rows

_NEEDS = ("ms-swift==4.6.0",)
_ROWS = 96
# How far a merged weight may be from ours, relative to the largest. ms-swift rounds Bone's float32 to the base's dtype
# before it merges.
_LIMITS = {torch.float32: 0.0, torch.bfloat16: 2**-7}


def main() -> int:
    python = python_of(arguments(__doc__).parse_args(), "swift", *_NEEDS)
    print(versions(python, "ms-swift", "transformers", "peft", "trl", "torch"))
    wrong = 0
    for dtype, limit in _LIMITS.items():
        with tempfile.TemporaryDirectory() as folder:
            said, right = _tried(python, Path(folder), dtype, limit)
        wrong += not right
        print(f"{dtype}: {said}", flush=True)
    return int(wrong > 0)


def _tried(python: str, work: Path, dtype: torch.dtype, limit: float) -> tuple[str, bool]:
    """What came of a base of this dtype, in words, and whether that is right."""
    base = make_base(work / "base", dtype)
    rows = write_rows(work / "rows.jsonl", "query", "response")
    sft = {
        "model": base,
        "model_type": "llama",
        "template": "chatml",
        "use_cpu": "true",
        "tuner_type": "bone",
        "dataset": f"{rows}#{_ROWS}",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "learning_rate": "1e-2",
        "gradient_accumulation_steps": 16,
        "eval_steps": 100,
        "save_steps": 100,
        "save_total_limit": 2,
        "logging_steps": 1,
        "output_dir": work / "out",
    }
    with activated(python):
        logged = _swift(python, work, "sft", sft)
        adapter = next(work.glob("out/*/checkpoint-*"))
        _swift(python, work, "export", {"adapters": adapter, "merge_lora": "true", "output_dir": work / "exported"})
    found = inspect_adapter(adapter)
    merge(str(base), str(adapter), work / "merged")
    theirs, ours, before = (tensors_of(work / name) for name in ("exported", "merged", "base"))
    losses = [float(loss) for loss in re.findall(r"'loss': '?([0-9.]+)", logged)]
    moved = sum(not torch.equal(ours[name], before[name]) for name in before)
    apart = max((theirs[name] - ours[name]).abs().max() / ours[name].abs().max() for name in theirs | ours).item()
    right = losses[-1] < losses[0] and moved == len(found.modules) and not found.nans and apart <= limit
    return (
        f"{len(losses)} losses, {losses[0]} to {losses[-1]}; adapter: {found.format}, {found.variant}, "
        f"{len(found.modules)} modules; export: {moved} of {len(before)} tensors moved, apart from bone merge by "
        f"{apart:.1e} at most (allowed {limit:.1e})"
    ), right


def _swift(python: str, work: Path, command: str, options: dict[str, object]) -> str:
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    program = str(Path(python).with_name("swift"))
    return run([program, command, *flags], work, cwd=work, MODELSCOPE_CACHE=str(work / "modelscope"))


if __name__ == "__main__":
    sys.exit(main())
