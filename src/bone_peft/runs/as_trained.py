"""How the rows of a run were written: its adapter is asked in the same way later, unless somebody says another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bone_peft.files.adapters import adapter_at
from bone_peft.io.yaml_file import read_yaml

from .data.forms.template import fill
from .training.recipe import Recipe


@dataclass(frozen=True)
class AsTrained:
    """What stands around a prompt.

    Attributes:
        chat: chat messages (True), plain text (False), or as the base has it (None).
        template: plain text around prompt and answer, as in a :class:`Recipe`.
    """

    chat: bool | None = None
    template: str | None = None

    def asked(self, prompt: str) -> str:
        """The prompt in its template, up to where the answer begins."""
        return prompt if self.template is None else fill(self.template, prompt, "")[0]

    def __str__(self) -> str:
        """A sentence; nothing where it is the base's own way."""
        if self.chat is None and self.template is None:
            return ""
        kind = "chat messages" if self.chat else "plain text"
        around = "" if self.template is None else f", {json.dumps(self.template, ensure_ascii=False)}"
        return f"Prompts are written as the run wrote its rows: {kind}{around}. --chat or --no-chat say another way."


def as_trained(adapter: str | Path | None) -> AsTrained:
    """What the recipe says of the run that ``adapter`` is of; of other adapters nothing is known.

    Args:
        adapter: the folder of a run, or of the adapter in it.

    Raises:
        BoneError: the run's recipe is damaged.
    """
    recipe = None if adapter is None else adapter_at(adapter).parent / "recipe.yaml"
    content = read_yaml(recipe) if recipe is not None and recipe.is_file() else None
    if not (isinstance(content, dict) and "versions" in content):  # which a run writes into its recipe
        return AsTrained()
    said = Recipe().with_values({key: content.get(key) for key in ("chat", "template")}, where=str(recipe))
    return AsTrained(said.chat, said.template)
