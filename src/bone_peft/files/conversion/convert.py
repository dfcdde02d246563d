"""``convert``: read, transform, write."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bone_peft.errors import BoneError, explains_missing_extras
from bone_peft.io.place import keep_off

from ..adapters import Adapter, format_for, read_adapter, write_adapter
from ..adapters.rwkv_names import are_rwkv, by_rwkv_names
from ..checkpoints import Checkpoint, open_checkpoint
from ..checkpoints.checkpoint import is_finite
from .in_parameters import in_parameters
from .live import LiveBase, adapter_of
from .separated import separated
from .to_lora import exact, nearest, one_rank


@dataclass(frozen=True)
class Converted:
    """What came out.

    Attributes:
        adapter: the adapter as it was written.
        source: the format it came from.
        errors: ``|dW' - dW| / |dW|`` (Frobenius) by module, where the conversion is not exact; else empty.
    """

    adapter: Adapter
    source: str
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        return not self.errors


@explains_missing_extras
def convert(
    adapter: str | Path | Any,
    to: str,
    out: str | Path,
    *,
    base: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    uniform: bool = False,
    fused: bool = False,
    rwkv_names: bool = False,
    dtype: str | None = None,
    adapter_name: str = "default",
    force: bool = False,
    trust_remote_code: bool = False,
) -> Converted:
    """Write an adapter in another format.

    Bone, MiSS and RWKV-PEFT share their tensors, so these conversions are exact, bit for bit. Bone and Bottleneck are
    LoRAs, exactly. Bat is not, and takes the nearest LoRA of a rank (by singular value decomposition).

    Args:
        adapter: a folder or file of any format, or a live ``PeftModel`` with Bone layers.
        to: ``"bone"``, ``"miss"``, ``"lora"`` or ``"rwkv"``.
        out: a new folder (``"rwkv"``: a new ``.pth`` file). It appears when it is whole.
        base: the base model, where its shapes or weights are needed: to LoRA, and from MiSS 'mini'. By default the one
            that the adapter names, if there is one here. A live model is its own base.
        rank: take the nearest LoRA of this rank.
        energy: take the LoRA of the smallest rank that keeps this share of ``|dW|^2`` in every layer, in ``(0, 1]``.
        uniform: give all layers of a LoRA the largest rank, filled up with zeros; llama.cpp needs that where there are
            several.
        fused: give a LoRA the experts of a layer together, as PEFT's ``target_parameters`` has them; by default each
            expert has its own, by the names of checkpoints.
        rwkv_names: call the modules of an adapter of an RWKV model as RWKV's own files do (``blocks.0.att.key``): so
            RWKV-PEFT has them in its PEFT folders. By default they are called as in our models.
        dtype: round the tensors to ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default they stay as they are.
            RWKV-PEFT's merge wants them in the type of its base.
        adapter_name: which adapter of a live model.
        force: replace ``out`` if it is an adapter that this package wrote.
        trust_remote_code: as for :func:`bone_peft.files.checkpoints.open_checkpoint`, for ``base``: what the
            adapter names is not trusted for it.

    Returns:
        The adapter written, and the errors, if it is not exact.

    Raises:
        BoneError: unsound input, a base missing, a format that cannot hold the adapter.
    """
    # Said before the work; writing asks again.
    given = adapter if isinstance(adapter, (str, Path)) else None
    format_for(to, out, force=force, inputs=(given, base))
    found: Adapter
    at: Checkpoint | LiveBase | None
    if isinstance(adapter, (str, Path)):
        found, format = read_adapter(adapter)
        where, source = str(adapter), format.name
        keep_off(out, (found.config.base_model_name_or_path,))
        needed = to == "lora" or found.mini_r is not None or base is not None
        at = _base(base, found, trust_remote_code) if needed else None
    else:
        found, where, source, at = adapter_of(adapter, adapter_name), "the model", "live", LiveBase(adapter)
    found.check_finite(where)
    found = found.expanded(None if at is None else at.shape_of)
    if at is not None:
        found = found if at.model is None else found.joined(at.model)
        found.check_fits(at, where)
    errors: dict[str, float] = {}
    if to == "lora" and at is not None:
        if rank is None and energy is None:
            found = exact(found, at)
        else:
            found, errors = nearest(found, at, rank, energy)
        found = in_parameters(found, at) if fused else found
        found = one_rank(found) if uniform or fused else found
    elif rank is not None or energy is not None or uniform or fused:
        raise BoneError(f"rank, energy, uniform and fused are for LoRA, and {to} is exact without: leave them out.")
    if to != "bone" and not fused:
        found = separated(found, at)
    if dtype is not None:
        found = found.rounded(dtype)
    if not all(is_finite(tensor) for tensor in found.tensors().values()):
        raise BoneError(f"{where} has numbers that are too large to be written as {to}: nothing was written.")
    if rwkv_names:
        found = by_rwkv_names(found)
        if not are_rwkv(found.layers):
            raise BoneError(f"{where} is of no RWKV model, so its modules have no names of RWKV: leave rwkv_names out.")
    write_adapter(found, to, out, force=force)
    return Converted(found, source, errors)


def _base(base: str | None, adapter: Adapter, trust_remote_code: bool) -> Checkpoint:
    name = base or adapter.config.base_model_name_or_path
    if not name:
        raise BoneError("This conversion needs the shapes of the base's layers: name the base with --base.")
    kind = adapter.config.task_type
    task = None if kind is None else str(getattr(kind, "value", kind))
    try:
        return open_checkpoint(name, task_type=task, trust_remote_code=trust_remote_code and base is not None)
    except BoneError as error:
        if base is not None:
            raise
        raise BoneError(f"{error} The adapter names this base; name another place for it with --base.") from None
