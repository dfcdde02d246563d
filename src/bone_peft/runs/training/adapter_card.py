"""The ``README.md`` of an adapter: what it is, how it is loaded, what it was trained on, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bone_peft.io.place import expanded
from bone_peft.method.tuner.model_card import tell_how_to_load

from ..data import written
from .methods import training_method
from .recipe import Recipe, versions_now
from .report import facts_of
from .result import TrainResult

_TEXT = """# {name}

{what} for `{base}`, trained with bone-peft.

## Training

| | |
| --- | --- |
{facts}

{held_out}The recipe, for `bone train`:

```yaml
{recipe}```

Versions: {versions}.

"""
_HELD_OUT = (
    "{what}. It is of rows that were not trained on{source}, taken by the run itself. `bone eval` scores answers.\n\n"
)


def write_adapter_card(folder: Path, adapter: Any, recipe: Recipe, result: TrainResult) -> None:
    """Put the text into the card that PEFT has begun, whose head says what the adapter belongs to.

    Args:
        folder: of the adapter, as PEFT saved it.
        adapter: its config.
    """
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    card = ModelCard.load(path) if path.is_file() else ModelCard("---\nlibrary_name: peft\n---\n")
    head: Any = card.data
    tags = {*(head.tags or []), "bone", "bone-peft"}
    if expanded(recipe.base).exists() or recipe.base.count("/") > 1 or ":" in recipe.base:
        head.base_model = None  # it has no page to point to
        tags = {tag for tag in tags if not tag.startswith("base_model:")}
    head.tags = sorted(tags)
    variant, method = adapter.variant, training_method(recipe.method)
    kind = f"{variant.name}, {variant.size_field}={getattr(adapter, variant.size_field)}"
    facts = {"Variant": kind, "Data": written(recipe.data), **facts_of(result, method)}
    looked = any("eval_loss" in entry for entry in result.history)
    source = "" if recipe.eval_data is None else f" ({written(recipe.eval_data)})"
    card.text = "\n" + _TEXT.format(
        name=Path(recipe.out).name or "adapter",
        what=variant.name.capitalize(),
        base=recipe.base,
        facts="\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items()),
        held_out=_HELD_OUT.format(what=method.about_held_out, source=source) if looked else "",
        recipe=recipe.to_yaml(),
        versions=", ".join(f"{name} {version}" for name, version in versions_now().items()),
    )
    card.save(path)
    tell_how_to_load(folder)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
