"""Pairs of answers are learned from, by TRL's DPO trainer."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import DataLoader
from trl import DPOTrainer

from bone_peft.errors import BoneError
from bone_peft.io.names import brief

from . import checkpointing
from .context_chunks import carries_a_state
from .cut_pairs import CutPairs
from .trainer import RunTrainer

_TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")
_REFERENCE = "ref"
"""TRL's name for an adapter as it was, where it is trained on."""


class PairTrainer(RunTrainer, DPOTrainer):
    """TRL's trainer for a chosen and a rejected answer each; the reference is the base, with the adapter off."""

    row, parts = "pair", (", chosen", ", rejected")

    def __init__(self, **kwargs: Any) -> None:
        self._judged: list[tuple[int, dict[str, float]]] = []
        super().__init__(**kwargs)

    # Rows

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        whole = copy.copy(args)
        whole.max_length = None
        try:
            prepared: Any = super()._prepare_dataset(dataset, processing_class, whole, dataset_name)
        except MemoryError:
            raise
        except Exception as error:  # a template may refuse a chat, in its own way
            raise BoneError(f"The base's tokenizer refuses these pairs: {brief(error).rstrip(' .')}.") from error
        tokens = prepared.select_columns([*_TOKENS])
        self.cut[dataset_name], kept = CutPairs.of(tokens, args)
        return tokens.select(kept)

    @cached_property
    def seen(self) -> Any:
        """Each pair as two rows, the chosen and the rejected answer."""
        args: Any = self.args
        part = slice(args.max_length)
        if args.max_length is not None and args.truncation_mode == "keep_end":
            part = slice(-args.max_length, None)

        def two(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
            rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
            for prompt, *answers in zip(*(batch[name] for name in _TOKENS), strict=True):
                for answer in answers:
                    rows["input_ids"].append([*prompt, *answer][part])
                    rows["labels"].append([*([-100] * len(prompt)), *answer][part])
            return rows

        data: Any = self.train_dataset
        return data.map(two, batched=True, remove_columns=data.column_names)

    # Before the first step

    def choose_how(self) -> None:
        if carries_a_state(self.base):
            raise BoneError("method dpo is not for RWKV: leave it out, or take a base in Transformers' format.")
        if self.is_sharded:
            raise BoneError("method dpo wants the whole model in each process: take --strategy ddp.")
        super().choose_how()

    def bytes_of_a_step(self) -> int:
        size = len(self.parts) * self.args.per_device_train_batch_size
        longest = max(self.seen["input_ids"], key=len)
        return checkpointing.needed(self.plain_model, longest, [len(longest)] * size)

    def count_parameters(self) -> tuple[int, int]:
        trained, whole = super().count_parameters()
        named = self.plain_model.named_parameters()
        return trained, whole - sum(p.numel() for name, p in named if f".{_REFERENCE}." in name)

    # Held-out pairs

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        if self.accelerator.num_processes == 1:
            return super().get_eval_dataloader(*args, **kwargs)
        # All of them in each process: shared out, some would be judged twice, to fill the last batch.
        data: Any = self.eval_dataset
        return DataLoader(data, batch_size=self.args.eval_batch_size, collate_fn=self.data_collator)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss, *others = super().prediction_step(model, inputs, *args, **kwargs)
        told = {name: values[-1] for name, values in self._metrics["eval"].items()}
        self._judged.append((len(inputs["input_ids"]) // 2, told | {"loss": float(loss)}))
        return (loss, *others)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's, but measures are means over pairs, however they are in batches."""
        self._judged = []
        output: Any = super().evaluation_loop(*args, **kwargs)
        pairs = sum(count for count, _ in self._judged)
        if pairs:
            means = {
                name: sum(count * told[name] for count, told in self._judged) / pairs for name in self._judged[0][1]
            }
            loss = torch.tensor(means.pop("loss"), device=self.args.device)
            output.metrics["eval_loss"] = self.accelerator.reduce(loss, reduction="mean").item()
            self._metrics["eval"].update({name: [mean] for name, mean in means.items()})
        return output
