"""RWKV-PEFT: a ``.pth`` dict, ``<module>.disha`` (older: ``<module>.bone``). Three dimensions mean Bat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bone_peft.errors import BoneError
from bone_peft.io.names import check_names
from bone_peft.io.torch_file import read_torch
from bone_peft.method import BoneConfig
from bone_peft.rwkv.pth_model import version_of

from ...kinds import ADAPTER_FILE
from .. import peft_folder
from ..adapter import Adapter
from ..format import Format
from ..rwkv_names import by_hf_names, by_rwkv_names

_NAMES = {"disha": "bone_block", "bone": "bone_block"}


def recognizes(path: Path) -> bool:
    return path.is_file() and path.suffix == ".pth"


def read(path: Path) -> Adapter:
    stored = read_torch(path).tensors
    check_names(stored, str(path))
    if "emb.weight" in stored and not any(name.rpartition(".")[2] in _NAMES for name in stored):
        raise BoneError(f"{path} is a whole RWKV model ({version_of(stored)}), not an adapter: it can be a --base.")
    layers, whole = peft_folder.split({name: tensor.read() for name, tensor in stored.items()}, _NAMES)
    dimensions = {params["bone_block"].ndim for params in layers.values()}
    if dimensions not in ({2}, {3}):
        raise BoneError(f"{path} is no Bone or Bat of RWKV-PEFT: it has no .disha tensors, or of several kinds.")
    options: dict[str, Any] = {"init_weights": "bat", "share": "input"} if dimensions == {3} else {"init_weights": True}
    config = BoneConfig(
        target_modules=sorted(layers),
        modules_to_save=sorted({name.rpartition(".")[0] for name in whole} - {""}) or None,
        inference_mode=True,
        **options,
    )
    adapter = Adapter(config, layers, whole).checked(str(path))
    config = peft_folder.with_sizes(config, {module: adapter.r(module) for module in layers})
    return by_hf_names(Adapter(config, layers, whole))


def write(adapter: Adapter, path: Path) -> None:
    if adapter.variant.name not in ("bone", "bat-input"):
        raise BoneError(f"RWKV-PEFT has no {adapter.variant.name}: it has Bone, and Bat with share='input'.")
    adapter = by_rwkv_names(adapter)
    tensors = {f"{module}.disha": params["bone_block"] for module, params in adapter.layers.items()} | adapter.whole
    with open(path, "wb") as file:
        torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


FORMAT = Format("rwkv", "RWKV-PEFT file", recognizes, read, write, ADAPTER_FILE)
