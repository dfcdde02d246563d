"""``load_adapter``: a saved PEFT adapter onto a base, or one sentence that says why not."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.io.names import brief
from bone_peft.io.safetensors_file import read_safetensors

from ..adapters import Adapter, adapter_at, read_adapter, write_adapter
from ..adapters.peft_folder import PREFIX
from ..adapters.rwkv_names import are_rwkv


def load_adapter(model: Any, folder: str | Path, *, trainable: bool = False) -> Any:
    """Put the adapter in ``folder`` onto ``model``.

    Args:
        model: a base from :func:`bone_peft.files.bases.load_base`.
        folder: a PEFT folder (``adapter_config.json`` and ``adapter_model.safetensors``), the folder of a run, or
            RWKV-PEFT's ``.pth`` file. Any of them may have RWKV's own names of modules.
        trainable: leave the adapter's parameters trainable.

    Returns:
        The :class:`peft.PeftModel`.

    Raises:
        BoneError: no adapter there, a file is damaged or foreign, or it was made for another architecture.
    """
    from peft import PeftModel, get_peft_model_state_dict

    folder = adapter_at(folder)
    if folder.suffix == ".pth":
        return _load_by_hf_names(model, read_adapter(folder)[0], folder, trainable)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise BoneError(f"There is no adapter in {folder}: {name} is missing.")
    # What PEFT would believe: sizes, patterns, and numbers that are some.
    adapter, _ = read_adapter(folder)
    adapter.check_finite(str(folder))
    stored = set(read_safetensors(folder / "adapter_model.safetensors").tensors)
    if are_rwkv(name.removeprefix(PREFIX) for name in stored):
        return _load_by_hf_names(model, adapter, folder, trainable)
    try:
        peft_model = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except Exception as error:  # whatever PEFT trips over
        raise _mismatch(folder, model, brief(error)) from error
    wanted = set(get_peft_model_state_dict(peft_model, save_embedding_layers=False))
    if missing := sorted(wanted - stored):
        raise _mismatch(folder, model, f"{len(missing)} tensors are missing from its file, such as {missing[0]}")
    if spare := sorted(stored - wanted):
        raise _mismatch(folder, model, f"{len(spare)} of its tensors have no place in the model, such as {spare[0]}")
    return peft_model


def _load_by_hf_names(model: Any, adapter: Adapter, where: Path, trainable: bool) -> Any:
    """What was read from a file with RWKV's names of modules."""

    def shape_of(module: str) -> tuple[int, ...]:
        try:
            return tuple(model.get_submodule(module).weight.shape)
        except AttributeError:
            raise _mismatch(where, model, f"it has no {module}") from None

    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "adapter")
        write_adapter(adapter.expanded(shape_of), "bone", folder)
        try:
            return load_adapter(model, folder, trainable=trainable)
        except BoneError as error:
            raise BoneError(str(error).replace(str(folder), str(where))) from None


def _mismatch(folder: Path, model: Any, why: str) -> BoneError:
    return BoneError(
        f"The adapter in {folder} does not fit this {type(model).__name__}; "
        f"use the base it was trained on ({why.rstrip('.')})."
    )
