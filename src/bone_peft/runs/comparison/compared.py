"""What is compared: ours, PEFT's, and training the whole model. A method is added by adding a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import peft

from bone_peft.errors import BoneError
from bone_peft.method import BoneConfig

Targets = list[str] | str


@dataclass(frozen=True)
class Method:
    """One way to adapt a base.

    Attributes:
        config: from a rank (or block size) and the targets to PEFT's config; None trains the whole model.
        sizes: ranks that may be taken, from small to large; none takes Bone's block size itself.
        is_ours: whether it is Bone's.
    """

    config: Callable[[int, Targets], Any] | None
    sizes: Sequence[int] = ()
    is_ours: bool = False


_RANKS = range(1, 1025)


def _bone(**options: Any) -> Method:
    return Method(lambda r, targets: BoneConfig(r=r, target_modules=targets, **options), is_ours=True)


def _lora(**options: Any) -> Method:
    return Method(lambda r, targets: peft.LoraConfig(r=r, lora_alpha=r, target_modules=targets, **options), _RANKS)


def _of_peft(kind: str, sizes: Sequence[int] = _RANKS) -> Method:
    def config(r: int, targets: Targets) -> Any:
        made = getattr(peft, kind, None)
        if made is None:
            raise BoneError(f"The installed PEFT ({peft.__version__}) has no {kind}: leave that method out.")
        return made(r=r, target_modules=targets)

    return Method(config, sizes)


METHODS: dict[str, Method] = {
    "bone": _bone(),
    "bat": _bone(init_weights="bat"),
    "bat-input": _bone(init_weights="bat", share="input"),
    "bottleneck": Method(
        lambda r, targets: BoneConfig(bottleneck_size=r, target_modules=targets), _RANKS, is_ours=True
    ),
    "lora": _lora(),
    "rslora": _lora(use_rslora=True),
    "dora": _lora(use_dora=True),
    "pissa": _lora(init_lora_weights="pissa_niter_16"),
    "miss": _of_peft("MissConfig", sizes=()),
    "lily": _of_peft("LilyConfig"),
    "hira": _of_peft("HiraConfig"),
    "full": Method(None),
}
"""By the name that a study has for it."""


def method(name: str) -> Method:
    """The method of that name, or a BoneError that names them all."""
    if name not in METHODS:
        raise BoneError(f"{name!r} is no method that can be compared: {', '.join(METHODS)}.")
    return METHODS[name]
