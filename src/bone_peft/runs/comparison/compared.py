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
        config: from a rank (or block size) and the targets to PEFT's config; None where the base itself is trained.
        sizes: ranks that may be taken, from small to large; none takes Bone's block size itself.
        is_ours: whether it is Bone's.
        trains_base: whether all weights are trained, and nothing is put beside them.
    """

    config: Callable[[int, Targets], Any]
    sizes: Sequence[int] = ()
    is_ours: bool = False
    trains_base: bool = False


_RANKS = range(1, 1025)


def _bone(sizes: Sequence[int] = (), size_field: str = "r", **options: Any) -> Method:
    def config(size: int, targets: Targets) -> Any:
        own = {size_field: size, **options}
        return BoneConfig(target_modules=targets, task_type="CAUSAL_LM", **own)

    return Method(config, sizes, is_ours=True)


def _of_peft(kind: str, sizes: Sequence[int] = _RANKS, scale_field: str | None = None, **options: Any) -> Method:
    def config(r: int, targets: Targets) -> Any:
        made = getattr(peft, kind, None)
        if made is None:
            raise BoneError(f"The installed PEFT ({peft.__version__}) has no {kind}: leave that method out.")
        scale = {} if scale_field is None else {scale_field: r}
        return made(r=r, target_modules=targets, task_type="CAUSAL_LM", **scale, **options)

    return Method(config, sizes)


def _lora(**options: Any) -> Method:
    return _of_peft("LoraConfig", scale_field="lora_alpha", **options)


METHODS: dict[str, Method] = {
    "bone": _bone(),
    "bat": _bone(init_weights="bat"),
    "bat-input": _bone(init_weights="bat", share="input"),
    "bottleneck": _bone(_RANKS, "bottleneck_size"),
    "lora": _lora(),
    "rslora": _lora(use_rslora=True),
    "dora": _lora(use_dora=True),
    "pissa": _lora(init_lora_weights="pissa_niter_16"),
    "miss": _of_peft("MissConfig", sizes=()),
    "lily": _of_peft("LilyConfig"),
    "hira": _of_peft("HiraConfig"),
    "full": Method(lambda r, targets: None, trains_base=True),
}
"""By the name that a study has for it."""


def method(name: str) -> Method:
    """The method of that name, or a BoneError that names them all."""
    if name not in METHODS:
        raise BoneError(f"{name!r} is no method that can be compared: {', '.join(METHODS)}.")
    return METHODS[name]
