"""``sft``, supervised fine-tuning: answers are learned as they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .training_method import TrainingMethod

if TYPE_CHECKING:
    from ..trainer import RunTrainer


# Between what `bone compare` found for long answers in batches of 32 rows (Bone 1.6e-3, Bat 7e-4) and for answers of
# one number in batches of 8 (1.25e-4 or less), on SmolLM2-135M: docs/accuracy.md. Bottleneck is LoRA with alpha = r.
_RATES = {"bone": 4e-4, "bat": 3e-4, "bat-input": 3e-4, "bottleneck": 1e-3}


class Sft(TrainingMethod):
    name = "sft"
    about_held_out = "Held-out loss is the mean over the tokens of answers (nats)"

    def config(self) -> type:
        from trl import SFTConfig

        return SFTConfig

    def trainer(self) -> type[RunTrainer]:
        from ..answer_trainer import AnswerTrainer

        return AnswerTrainer

    def usual(self, variant: str) -> dict[str, Any]:
        return {
            "learning_rate": _RATES[variant],
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.03,
            "per_device_train_batch_size": 16,
        }

    def options(self, recipe: Any) -> dict[str, Any]:
        return {"context_chunk": recipe.context_chunk, "train_on": recipe.train_on}


METHOD = Sft()
