"""Does a model keep the rows of a line apart, and compute for each what it computes for the row alone?"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from bone_peft.io.names import brief

from .collator import lines_for
from .row_attention import by_rows

_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}


@torch.no_grad()
def fault(model: Any, first: list[int], second: list[int], *, own_attention: bool = False) -> str | None:
    """Why ``model`` does not take lines of rows, in words; None if it does.

    Args:
        model: as in Transformers, with adapters or without.
        first: tokens of a row, two at least.
        second: tokens of another one.
        own_attention: with the model's own attention, which knows the borders by the positions.
    """
    if not own_attention and not _is_told(model):
        return "its layers do not take the borders of rows"
    trained = model.training
    model.eval()
    try:
        alone = _logits(model, {"input_ids": torch.tensor([second]), "attention_mask": torch.ones(1, len(second))})
        with nullcontext() if own_attention else by_rows(model):
            line = _line(model, first, second)
            other = _line(model, [token - 1 if token else 1 for token in first], second)
    except Exception as error:
        return brief(error)
    finally:
        model.train(trained)
    tolerance = _ROUNDING.get(alone.dtype, 0.1)
    if not _near(line, other, tolerance / 10):
        return "a row sees the one before it"
    if not _near(line, alone, tolerance):
        return "a row is not computed as it is alone"
    return None


def _is_told(model: Any) -> bool:
    """Whether its layers hand the borders on, as flash attention needs them too."""
    if getattr(model, "takes_equal_rows", False):
        return True
    return bool(getattr(model, "_supports_flash_attn", False)) and hasattr(model, "set_attn_implementation")


def _line(model: Any, first: list[int], second: list[int]) -> Tensor:
    """Logits of ``second``, behind ``first`` in one line."""
    collate = lines_for(model)(pad_token_id=0, most_answers=0)
    batch = collate([{"input_ids": row} for row in (first, second)])
    del batch["labels"], batch["row_tokens"]
    start = int(batch["cu_seq_lens_q"][1])
    return _logits(model, batch)[start : start + len(second)]


def _logits(model: Any, batch: dict[str, Any]) -> Tensor:
    device = model.get_input_embeddings().weight.device
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return model(**batch, use_cache=False).logits[0]


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return float((a.double() - b.double()).norm()) <= tolerance * float(b.double().norm())
