"""What the README of a saved adapter says: how to load it, since PEFT alone does not know Bone."""

from __future__ import annotations

from pathlib import Path

_HEADING = "## How to load this Bone adapter"
_TEXT = f"""\
{_HEADING}

PEFT from 0.19 on says `KeyError: 'BONE'` until `bone-peft` is installed and imported:

    pip install bone-peft

```python
import bone_peft  # makes Bone a method of PEFT
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("this folder")
```

Programs that cannot be changed find Bone once `bone activate` was run in their environment. `bone merge` writes the
base with the adapter in it, and `bone convert --to lora` a LoRA; neither needs bone-peft to be loaded.
"""


def tell_how_to_load(folder: str | Path) -> None:
    """Add the section to the folder's README, which is made if there is none."""
    file = Path(folder) / "README.md"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if _HEADING not in text:
        file.write_text(f"{text.rstrip()}\n\n{_TEXT}".lstrip(), encoding="utf-8")
