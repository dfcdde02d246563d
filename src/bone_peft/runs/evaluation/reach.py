"""What a base can read at all: token ids it has embeddings for, and as many tokens as it has positions."""

from typing import Any

from bone_peft.errors import BoneError


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
