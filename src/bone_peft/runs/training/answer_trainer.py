"""Answers are learned: their tokens are marked in the rows, and what ``max_length`` takes of them is counted."""

import copy
from typing import Any

from ..data import is_chat
from .chat_labels import labeled
from .cut_rows import CutRows
from .step_trainer import StepTrainer


class AnswerTrainer(StepTrainer):
    """TRL's trainer for prompts and completions, chats and documents.

    Args:
        train_on: which answers of a chat are learned, as for :func:`~bone_peft.runs.training.chat_labels.labeled`.
    """

    def __init__(self, *, train_on: str = "all", **kwargs: Any) -> None:
        self._train_on = train_on
        super().__init__(**kwargs)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: Any, formatting_func: Any, dataset_name: Any
    ) -> Any:
        if is_chat(dataset):
            dataset = self._labeled(dataset, processing_class, args, dataset_name)
        # First whole, to see what is lost; then cut (and packed) by TRL from its own tokens.
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        tokens = super()._prepare_dataset(dataset, processing_class, whole, False, formatting_func, dataset_name)
        self.cut[dataset_name] = CutRows.of(tokens, args, packing)
        return super()._prepare_dataset(tokens, processing_class, args, packing, None, dataset_name)

    def _labeled(self, chats: Any, tokenizer: Any, args: Any, name: str) -> Any:
        """Chats as tokens, with the answers that are learned."""
        train_on = "all" if args.assistant_only_loss else self._train_on
        of = {"tokenizer": tokenizer, "train_on": train_on, "everything": args.completion_only_loss is False}
        columns = chats.column_names
        rows = chats.map(labeled, fn_kwargs=of, remove_columns=columns, num_proc=args.dataset_num_proc)
        skipped = sum(rows["skipped"])
        if skipped:
            kind = "training" if name == "train" else "held-out"
            self._say(
                f"{skipped} earlier answers of the {kind} rows are not learned: the base's chat template writes them "
                "otherwise once more is said."
            )
        return rows.remove_columns("skipped")
