"""Long rows in pieces: the model's state goes on from one to the next, gradients do not (RWKV's infinite context)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .completion_loss import loss_and_sums


def carries_a_state(model: Any) -> bool:
    """Whether a base can be given its rows in pieces while it trains."""
    try:
        from bone_peft.rwkv.causal_lm import RwkvForCausalLM
    except ImportError:
        return False
    return isinstance(model, RwkvForCausalLM)


def loss_in_chunks(
    model: Any,
    batch: dict[str, Tensor],
    size: int,
    wanted: bool,
    backward: Callable[[Callable[[], Tensor], bool], Tensor] | None = None,
    shared: Any = None,
) -> tuple[Tensor, Tensor | None]:
    """The summed loss of ``batch`` and, if wanted, the sums that TRL's metrics are made of.

    No more than one piece is kept for backward, so the length of rows costs time and no memory. A piece without an
    answer only moves the state.

    Args:
        model: adapted, over a base that carries a state; as :func:`carries_a_state` knows.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each ``(rows, tokens)``.
        size: tokens of a piece.
        wanted: whether the sums are.
        backward: takes what computes the loss of a piece, and whether it is the last to be learned from; runs it, and
            backward. Left out, nothing is learned.
        shared: ``model`` in what several processes have around it, for the last piece: they may have different numbers
            of pieces, and meet there only.
    """
    targets = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    pieces = [x.split(size, 1) for x in (batch["input_ids"], batch["attention_mask"], targets)]
    learned = torch.stack([(piece != -100).any() for piece in pieces[2]]).tolist()
    last = max((index for index, any_is in enumerate(learned) if any_is), default=0)
    state, total = None, torch.zeros((), device=targets.device)
    sums: Tensor | None = None

    for index, (ids, mask, wants) in enumerate(zip(*pieces, strict=True)):
        if index > last:
            break  # nobody asks for the state

        def piece_loss(index: int = index, ids: Tensor = ids, mask: Tensor = mask, wants: Tensor = wants) -> Tensor:
            nonlocal state, sums
            run = shared if backward is not None and shared is not None and index == last else model
            output = run(input_ids=ids, attention_mask=mask, past_key_values=state, use_cache=True)
            state = output.past_key_values
            loss, piece_sums = loss_and_sums(output.logits.flatten(0, 1), wants.flatten(), wanted)
            if piece_sums is not None:
                sums = piece_sums if sums is None else sums + piece_sums
            return loss

        if backward is not None and (learned[index] or index == last):
            loss = backward(piece_loss, index == last)
        else:
            with torch.no_grad():
                loss = piece_loss()
        total = total + loss.detach()
    return total, sums
