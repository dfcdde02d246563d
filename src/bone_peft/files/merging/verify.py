"""``verify``: run the base with its adapters, and the merged model, on one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bone_peft.errors import BoneError
from bone_peft.method import BoneLayer

from ..bases import load_base
from ..conversion import convert


@dataclass(frozen=True)
class Verified:
    """How near two models are on a prompt.

    Attributes:
        rounding: largest difference of a logit between adapter beside base and merged model.
        logits: largest absolute logit, to judge that by.
        same_tokens: share of positions where both find the same next token most likely.
    """

    rounding: float
    logits: float
    same_tokens: float


@torch.no_grad()
def verify(
    base: str,
    adapters: Sequence[str | Path],
    merged: str | Path,
    prompt: str,
    *,
    weights: Sequence[float] | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Verified:
    """Load both models, and compare their logits.

    Merging in memory has to give the same logits as the merged folder, bit for bit (or worse ones: PEFT merges an
    adapter of a tied ``lm_head`` into the embedding as well). How far both are from the model that was not merged is a
    matter of rounding, and reported.

    Args:
        base, adapters, weights: what was merged. Needs memory for the whole model.
        merged: the folder it was merged into.
        prompt: text.
        dtype: of the weights.
        trust_remote_code: as for :func:`bone_peft.load_base`.

    Raises:
        BoneError: the merged folder is not what merging in memory gives.
    """
    from peft import PeftModel

    names = [f"adapter{index}" for index in range(len(adapters))]
    model, tokenizer = load_base(base, dtype=dtype, trust_remote_code=trust_remote_code)
    tokens = tokenizer(prompt, return_tensors="pt")
    tuned: Any = None
    with TemporaryDirectory() as folder:
        for name, adapter in zip(names, adapters, strict=True):
            # PEFT reads this format whatever the one given.
            convert(adapter, "bone", Path(folder, name), base=base, trust_remote_code=trust_remote_code)
            if tuned is None:
                tuned = PeftModel.from_pretrained(model, str(Path(folder, name)), adapter_name=name)
            else:
                tuned.load_adapter(str(Path(folder, name)), name)
    for layer in tuned.modules():
        if isinstance(layer, BoneLayer):
            for name, weight in zip(names, weights or [1.0] * len(names), strict=True):
                layer.set_scale(name, weight)
    tuned.base_model.set_adapter(names)
    beside: Tensor = tuned.eval()(**tokens).logits.float()
    in_memory = tuned.merge_and_unload(adapter_names=names)(**tokens).logits.float()
    del tuned, model
    from_files = load_base(str(merged), dtype=dtype, trust_remote_code=trust_remote_code)[0](**tokens).logits.float()
    rounding, allowed = _distance(beside, from_files), _distance(beside, in_memory)
    if not torch.equal(in_memory, from_files) and rounding > allowed:
        raise BoneError(
            f"{merged} is not what merging in memory gives: it is {rounding:.3g} off in its logits, and "
            f"that {allowed:.3g}."
        )
    same = (beside.argmax(-1) == from_files.argmax(-1)).float().mean()
    return Verified(rounding, float(beside.abs().max()), float(same))


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
