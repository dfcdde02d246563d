"""sentence-transformers' ``add_adapter`` with a ``BoneConfig`` from PEFT: trained, saved, loaded: the same embeddings.

    python -m checks.programs.embeddings

``scripts/train_embeddings.py`` is run after ``bone activate`` (which is undone), on a CPU.
"""

import json
import sys
import tempfile
from pathlib import Path

from bone_peft import inspect_adapter

from .environment import activated, arguments, python_of, run
from .tiny import make_base, versions

_NEEDS = ("sentence-transformers==6.2.0", "peft==0.21.2", "transformers==5.23.0", "datasets==5.2.0")
_SCRIPT = Path(__file__).with_name("scripts") / "train_embeddings.py"


def main() -> int:
    python = python_of(arguments(__doc__).parse_args(), "sentence", *_NEEDS)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = make_base(work / "base")
        with activated(python):
            said = run([python, str(_SCRIPT), str(base), str(work / "out")], work, cwd=work)
        found = json.loads(next(line for line in said.splitlines() if line.startswith('{"losses"')))
        adapter = inspect_adapter(next((work / "out").rglob("adapter_config.json")).parent)
    losses, count = found["losses"], len(found["trained"])
    print(versions(python, "sentence-transformers", "transformers", "peft", "torch"))
    print(
        f"{len(losses)} losses, {losses[0]:.4f} to {losses[-1]:.4f}; {found['moved']} of {count} tensors moved; "
        f"adapter: {adapter.format}, {adapter.variant}, {len(adapter.modules)} modules; embeddings changed by "
        f"{found['changed']:.1e}, after loading apart by {found['apart']:.1e}"
    )
    right = losses[-1] < losses[0] and found["moved"] == count == len(adapter.modules)
    return int(not right or found["apart"] > found["changed"] * 1e-4)


if __name__ == "__main__":
    sys.exit(main())
