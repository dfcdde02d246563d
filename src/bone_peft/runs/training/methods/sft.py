"""``sft``, supervised fine-tuning: answers are learned as they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .training_method import TrainingMethod

if TYPE_CHECKING:
    from ..trainer import RunTrainer


class Sft(TrainingMethod):
    name = "sft"
    about_held_out = "Held-out loss is the mean over the tokens of answers (nats)"

    def config(self) -> type:
        from trl import SFTConfig

        return SFTConfig

    def trainer(self) -> type[RunTrainer]:
        from ..answer_trainer import AnswerTrainer

        return AnswerTrainer

    def options(self, recipe: Any) -> dict[str, Any]:
        return {"context_chunk": recipe.context_chunk, "train_on": recipe.train_on}


METHOD = Sft()
