"""Unsloth's models with a Bone adapter from PEFT: trained by ``SFTTrainer`` as Unsloth changes it, and loaded by name.

    python -m checks.programs.unsloth

``scripts/train_unsloth.py`` is run after ``bone activate`` (which is undone), on a CPU, without torchvision.
"""

import json
import sys
import tempfile
from pathlib import Path

from bone_peft import inspect_adapter

from .environment import activated, arguments, python_of, run
from .tiny import make_adapter, make_base, versions

_NEEDS = (
    *("peft==0.21.2", "transformers==5.17.0", "trl==1.15.0", "datasets==4.8.5", "bitsandbytes==0.50.2"),
    *("triton==3.6.0", "psutil==7.2.2", "tyro==1.0.17", "protobuf==7.36.2", "sentencepiece==0.2.3"),
    *("hf_transfer==0.1.9", "diffusers==0.42.1", "cut_cross_entropy==25.1.1"),
)
_BARE = ("unsloth==2026.10.9", "unsloth_zoo==2026.10.9")
_SCRIPT = Path(__file__).with_name("scripts") / "train_unsloth.py"


def main() -> int:
    python = python_of(arguments(__doc__).parse_args(), "unsloth", *_NEEDS, bare=_BARE)
    print(versions(python, "unsloth", "transformers", "peft", "trl", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = make_base(work / "base")
        adapter = make_adapter(base, work / "adapter", r=16)
        with activated(python):
            said = run([python, str(_SCRIPT), str(base), str(adapter), str(work / "out")], work, cwd=work)
        found = json.loads(next(line for line in said.splitlines() if line.startswith('{"losses"')))
        saved = inspect_adapter(work / "out")
    losses, count = found["losses"], found["trained"]
    print(
        f"SFT: {len(losses)} losses, {losses[0]:.4f} to {losses[-1]:.4f}; {found['moved']} of {count} tensors moved; "
        f"adapter: {saved.format}, {saved.variant}, {len(saved.modules)} modules"
    )
    print(f"FastLanguageModel.from_pretrained(ADAPTER): logits as PeftModel's, apart by {found['apart']:.1e}")
    right = losses[-1] < losses[0] and found["moved"] == count == len(saved.modules)
    return int(not right or found["apart"] > found["largest"] * 1e-5)


if __name__ == "__main__":
    sys.exit(main())
