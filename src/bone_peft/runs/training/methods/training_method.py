"""``TrainingMethod``: what a way of learning owes to a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from bone_peft.errors import BoneError

if TYPE_CHECKING:
    from ..trainer import RunTrainer


class TrainingMethod(ABC):
    """One way to learn.

    Attributes:
        name: as a recipe says it.
        pairs: whether it learns from pairs of answers, else from prompts and completions.
        sequences: of tokens, that a row is.
        rows: what the rows are called, in the plural.
        right_answer: what the answer that the rows hold is called beside those of the model.
        is_exact: whether an answer that is that one is right, and every other wrong.
        loss_axis: of a picture, with its unit.
        held_out_loss: what the loss on held-out rows is called in a sentence.
        about_held_out: what it is, for the adapter's card.
        measures: keys of the Trainer's log beside ``eval_loss``, and how they are told.
        refused: keys of a recipe that it has no use for.
        likely: settings of its own that one is likely to change, and a word on each.
    """

    name: ClassVar[str]
    pairs: ClassVar[bool] = False
    sequences: ClassVar[int] = 1
    rows: ClassVar[str] = "rows"
    right_answer: ClassVar[str] = "expected"
    is_exact: ClassVar[bool] = True
    loss_axis: ClassVar[str] = "loss (nats per token)"
    held_out_loss: ClassVar[str] = "loss on held-out rows"
    about_held_out: ClassVar[str]
    measures: ClassVar[Mapping[str, str]] = {}
    refused: ClassVar[tuple[str, ...]] = ()
    likely: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def config(self) -> type:
        """TRL's class of settings."""

    @abstractmethod
    def trainer(self) -> type[RunTrainer]:
        """The class of the training loop."""

    def usual(self, variant: str) -> dict[str, Any]:
        """Settings of TRL's class that a run has where its recipe does not name them.

        Args:
            variant: name of the adapter's.
        """
        return {}

    def options(self, recipe: Any) -> dict[str, Any]:
        """Arguments of the trainer beside those that all methods have, of a :class:`Recipe`."""
        return {}

    def check(self, recipe: Any) -> None:
        """Raise a BoneError if a :class:`Recipe` asks for what the method does not do."""
        usual = type(recipe)()
        for key in self.refused:
            if getattr(recipe, key) != getattr(usual, key):
                raise BoneError(f"{key} is not for method {self.name}, which learns from {self.rows}: leave it out.")

    def questions(self, rows: Any) -> Any:
        """Rows of a prompt and a completion, to be answered when the run is done."""
        return rows

    def verdict(self, history: list[dict[str, Any]], kept_step: int | None) -> str:
        """Whether it helped, by what is measured beside the loss; a sentence, or nothing."""
        return ""

    def facts(self, history: list[dict[str, Any]], kept_step: int | None) -> dict[str, str]:
        """What is measured beside the loss, in words and units."""
        return {}
