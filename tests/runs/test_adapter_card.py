"""The card of an adapter that a run leaves says what it is, where it is from, and how it is loaded."""

from huggingface_hub import ModelCard

from bone_peft.runs.training import train
from bone_peft.runs.training.recipe import Recipe

from .test_train import recipe
from .tiny import sums, write_rows


def test_what_it_says(plain_base, rows_file, tmp_path):
    held_out = str(write_rows(tmp_path / "held-out.jsonl", sums(6, start=30)))
    adapter = {"adapter__init_weights": "bat", "adapter__share": "input"}
    result = train(recipe(plain_base, rows_file, tmp_path / "run", eval_data=held_out, **adapter))
    card = ModelCard.load(tmp_path / "run" / "adapter" / "README.md")
    assert card.data.library_name == "peft" and {"bone", "bone-peft"} <= set(card.data.tags)
    assert card.data.base_model is None  # a folder of this machine has no page
    assert plain_base not in (tmp_path / "run" / "adapter" / "README.md").read_text().partition("\n---\n")[0]
    first, *_, last = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    for text in (
        f"Bat-input for `{plain_base}`",
        "| Variant | bat-input, r=8 |",
        f"| Data | {rows_file} |",
        f"| Held-out loss, first to last | {first:.3f} → {last:.3f}",
        "import bone_peft",
        "bone-peft ",
    ):
        assert text in card.text, text
    shown = card.text.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "shown.yaml").write_text(shown)
    assert Recipe.load(tmp_path / "shown.yaml") == Recipe.load(tmp_path / "run" / "recipe.yaml")
    assert "More Information Needed" not in card.text
