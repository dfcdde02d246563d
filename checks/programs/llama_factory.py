"""LLaMA-Factory has no name for Bone; does it train on, and export, a Bone adapter that is there?

    python -m checks.programs.llama_factory

``adapter_name_or_path`` is a folder that PEFT wrote, ``finetuning_type`` stays ``lora``. Run after ``bone activate``
(which is undone), on a CPU, without torchvision and torchaudio, which it asks for and does not use here.
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
from .tiny import make_adapter, make_base, tensors_of, versions, write_rows

_NEEDS = (
    *("peft==0.18.1", "transformers==5.6.0", "trl==0.24.0", "accelerate==1.11.0", "datasets==4.0.0"),
    *("gradio==5.50.0", "av==16.0.0", "einops==0.8.2", "fire==0.7.1", "hf-transfer==0.1.9"),
    *("matplotlib==3.11.2", "modelscope==1.40.2", "omegaconf==2.4.0", "scipy==1.17.1", "sentencepiece==0.2.3"),
    *("sse-starlette==3.7.0", "tiktoken==0.14.0", "torchdata==0.11.0", "tyro==0.8.14"),
)
_BARE = ("llamafactory==0.9.5",)
_STAND_INS = Path(__file__).with_name("stand_ins")


def main() -> int:
    python = python_of(arguments(__doc__).parse_args(), "llama_factory", *_NEEDS, bare=_BARE)
    print(versions(python, "llamafactory", "transformers", "peft", "trl", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = make_base(work / "base")
        adapter = make_adapter(base, work / "adapter", r=16, init_weights="bat")
        write_rows(work / "data/rows.jsonl", "instruction", "output")
        sums = {"file_name": "rows.jsonl", "columns": {"prompt": "instruction", "response": "output"}}
        (work / "data/dataset_info.json").write_text(json.dumps({"sums": sums}))
        common = {"model_name_or_path": str(base), "template": "chatml", "finetuning_type": "lora"}
        train = {
            "stage": "sft",
            "do_train": True,
            "adapter_name_or_path": str(adapter),
            "dataset": "sums",
            "dataset_dir": str(work / "data"),
            "output_dir": str(work / "trained"),
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
        }
        export = {"adapter_name_or_path": str(work / "trained"), "export_dir": str(work / "exported")}
        with activated(python):
            said = _run(python, work, "train", common | train)
            _run(python, work, "export", common | export | {"infer_dtype": "float32"})
        merge(str(base), str(work / "trained"), work / "merged")
        found = inspect_adapter(work / "trained")
        start, trained = tensors_of(adapter), tensors_of(work / "trained")
        theirs, ours = tensors_of(work / "exported"), tensors_of(work / "merged")
    losses = [float(loss) for loss in re.findall(r"'loss': '?([0-9.]+)", said)]
    moved = sum(not torch.equal(start[name], trained[name]) for name in start)
    apart = max((theirs[name] - ours[name]).abs().max().item() for name in theirs.keys() | ours)
    print(
        f"train: {len(losses)} losses, {losses[0]} to {losses[-1]}, {moved} of {len(start)} tensors of the "
        f"{found.variant} adapter moved; export: apart from bone merge by {apart:.1e} at most"
    )
    return int(losses[-1] >= losses[0] or moved != len(start) or found.variant != "bat" or apart > 0)


def _run(python: str, work: Path, command: str, options: dict[str, Any]) -> str:
    settings = work / f"{command}.yaml"  # JSON is YAML too
    settings.write_text(json.dumps(options))
    program = str(Path(python).with_name("llamafactory-cli"))
    return run([program, command, str(settings)], work, cwd=work, PYTHONPATH=str(_STAND_INS))


if __name__ == "__main__":
    sys.exit(main())
