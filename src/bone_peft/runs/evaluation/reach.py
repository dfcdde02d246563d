"""What a base can read at all: token ids it has embeddings for, and as many tokens as it has positions."""

from collections.abc import Iterable
from typing import Any

from bone_peft.errors import BoneError

# For a token. Words of a vocabulary are shorter, but positions may be stretched.
_CHARACTERS = 100


def positions_of(model: Any) -> int | None:
    """Most tokens that ``model`` can read at once, if its positions are learned and so come to an end."""
    import torch

    learned = any(
        isinstance(module, torch.nn.Embedding) and (name.endswith("wpe") or "position" in name)
        for name, module in model.named_modules()
    )
    return getattr(model.config, "max_position_embeddings", None) if learned else None


def check_reach(model: Any, highest_id: int, most_tokens: int) -> None:
    """Raise a BoneError if rows with such a token id, or of so many tokens, are beyond ``model``."""
    embeddings = model.get_input_embeddings()
    known = getattr(embeddings, "num_embeddings", None)
    if known is not None and highest_id >= known:
        raise BoneError(
            f"The base's tokenizer gives token {highest_id}, and the base knows {known} tokens: they do not belong "
            "together; save the right tokenizer with the base."
        )
    positions = positions_of(model)
    if positions is not None and most_tokens > positions:
        raise BoneError(
            f"A row is {most_tokens} tokens long, and this base reads {positions} at most: shorten it, or for training "
            f"set training.max_length (--max-length) to {positions}."
        )


def check_length(model: Any, texts: Iterable[str]) -> None:
    """Raise a BoneError at a text that is far too long for ``model``, before it takes minutes to cut it into tokens.

    Rotary positions have no end, but attention over many times as many as a model was made for takes all memory.
    """
    made_for = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(made_for, int) or made_for <= 0:
        return
    longest = max(map(len, texts), default=0)
    if longest > _CHARACTERS * made_for:
        raise BoneError(
            f"A row is {longest:,} characters long, and this base is made for {made_for:,} tokens: shorten or drop it."
        )
