"""``dpo``, direct preference optimization (arXiv 2305.18290): of two answers, one is preferred.

An answer's reward is ``beta`` times the log of how much likelier it has become than it is for the reference: the
base without the adapter, or where an adapter is trained on, that adapter as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bone_peft.errors import BoneError

from .training_method import TrainingMethod

if TYPE_CHECKING:
    from ..trainer import RunTrainer

_ACCURACY, _MARGIN = "eval_rewards/accuracies", "eval_rewards/margins"


class Dpo(TrainingMethod):
    name = "dpo"
    pairs = True
    sequences = 2
    rows = "pairs"
    right_answer = "chosen"
    is_exact = False
    loss_axis = "DPO loss"
    held_out_loss = "DPO loss on held-out pairs"
    about_held_out = (
        "Held-out loss is DPO's, the mean over pairs; reward accuracy is the share of pairs whose chosen answer has "
        "the higher reward, and the margin is by how much, on average"
    )
    measures = {_ACCURACY: "reward accuracy {:.1%}", _MARGIN: "margin {:.4f}"}
    refused = ("fields", "context_chunk", "train_on", "tensor_parallel")
    likely = {"beta": "How much the model is held to what it was: with more, it changes less."}

    def config(self) -> type:
        from trl import DPOConfig

        return DPOConfig

    def trainer(self) -> type[RunTrainer]:
        from ..pair_trainer import PairTrainer

        return PairTrainer

    def check(self, recipe: Any) -> None:
        super().check(recipe)
        if recipe.adapter.get("modules_to_save"):
            raise BoneError("adapter.modules_to_save is not for method dpo, whose reference has none: leave it out.")
        dropout = [name for name in ("bone_dropout", "bottleneck_dropout") if recipe.adapter.get(name)]
        if dropout and recipe.training.get("disable_dropout") is not False:
            raise BoneError(
                f"adapter.{dropout[0]} would be switched off, as TRL does for DPO: leave it out, or set "
                "training.disable_dropout to false."
            )

    def questions(self, rows: Any) -> Any:
        return rows.remove_columns("rejected").rename_column("chosen", "completion")

    def verdict(self, history: list[dict[str, Any]], kept_step: int | None) -> str:
        looks = _looks(history, kept_step)
        if not looks:
            return ""
        return (
            f"The chosen answer has the higher reward in {looks[-1][_ACCURACY]:.1%} of them, and the mean margin is "
            f"{looks[-1][_MARGIN]:.3f}; before training all rewards are 0."
        )

    def facts(self, history: list[dict[str, Any]], kept_step: int | None) -> dict[str, str]:
        looks = _looks(history, kept_step)
        if not looks:
            return {}
        accuracy, margin = ([look[key] for look in (looks[0], looks[-1])] for key in (_ACCURACY, _MARGIN))
        return {
            "Reward accuracy on held-out pairs": " → ".join(f"{value:.1%}" for value in accuracy),
            "Reward margin on held-out pairs": " → ".join(f"{value:.3f}" for value in margin),
        }


def _looks(history: list[dict[str, Any]], kept_step: int | None) -> list[dict[str, Any]]:
    """What was measured on held-out pairs, up to the step whose adapter is left."""
    looks = [entry for entry in history if _ACCURACY in entry]
    return [look for look in looks if kept_step is None or look["step"] <= kept_step]


METHOD = Dpo()
