"""The loss of a line of rows: the head is computed only where an answer is learned."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

_BYTES = 2**32
"""Of logits at once. Longer lines are TRL's, which computes them in pieces, twice."""

_PIECE = 2**26
"""Bytes of log probabilities that metrics are taken of at once: beside those that backward needs, next to nothing."""

SUMS = ("entropy", "mean_token_accuracy", "answers")


def most_answers(model: Any) -> int:
    """How many places of a line may go through the head at once; 0 if the model cannot be told which."""
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        return 0
    return _BYTES // logits_bytes(model, 1)


def logits_bytes(model: Any, answers: int) -> int:
    """Bytes of the logits at so many places, in the base's dtype and in float32, and of their gradient."""
    head = model.get_output_embeddings()
    words = getattr(head, "out_features", None) or model.config.get_text_config().vocab_size
    return int(answers * words * 3 * 4)


def completion_loss(model: Any, batch: dict[str, Any], wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The summed loss of ``batch`` and, if wanted, the sums that TRL's metrics are made of, as :data:`SUMS` names them.

    Nothing waits for the device.

    Args:
        batch: of :class:`RowsInOneLine`, with ``logits_to_keep``.
    """
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "targets")}
    return loss_and_sums(model(**inputs, use_cache=False).logits[0], batch["targets"], wanted)


def loss_and_sums(logits: Tensor, targets: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Cross-entropy, summed, and the sums if they are wanted, in float32.

    What backward keeps, the log probabilities, is the only thing of its size.

    Args:
        logits: ``(places, words)``.
        targets: ``(places,)``; -100 is nothing to learn.
    """
    log_p = logits.log_softmax(-1, dtype=torch.float32)
    return nll_loss(log_p, targets, reduction="sum"), _sums(log_p.detach(), targets) if wanted else None


@torch.no_grad()
def _sums(log_p: Tensor, targets: Tensor) -> Tensor:
    places = max(1, _PIECE // (4 * log_p.shape[1]))
    pieces = zip(log_p.split(places), targets.split(places), strict=True)
    return torch.stack([_sums_of_piece(*piece) for piece in pieces]).sum(0)


def _sums_of_piece(log_p: Tensor, targets: Tensor) -> Tensor:
    learned = targets != -100
    entropy = -(log_p.exp() * log_p).sum(-1)
    right = log_p.argmax(-1) == targets
    return torch.stack([(entropy * learned).sum(), right.sum(), learned.sum()])
