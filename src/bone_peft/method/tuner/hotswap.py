"""Hot-swap: put the tensors of one adapter where those of another are, without touching the model.

``peft.utils.hotswap.hotswap_adapter`` loads the files, and calls this for Bone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bone_peft.errors import BoneError

from .config import BoneConfig
from .layer import BoneLayer
from .sharded import part, reshard


def swap_adapter(model: nn.Module, state_dict: Mapping[str, Tensor], adapter_name: str, config: BoneConfig) -> None:
    """Replace the tensors of ``adapter_name`` by those of ``state_dict``.

    Layers that the new adapter does not have get ``dW = 0``. Everything is checked before anything is written.

    Args:
        model: holds the adapter; may be compiled. Tensors of the same shape are copied in place, so that nothing
            compiles again.
        state_dict: keys of the model's own state dict, adapter name included.
        adapter_name: which adapter to replace.
        config: the new adapter's.

    Raises:
        BoneError: if the adapter is merged, or the new one has another variant, layers or shapes.
    """
    module = getattr(model, "_orig_mod", model)
    layers = {key: layer for key, layer in module.named_modules() if isinstance(layer, BoneLayer)}
    layers = {key: layer for key, layer in layers.items() if adapter_name in layer.bone_variant}
    if any(adapter_name in layer.merged_adapters for layer in layers.values()):
        raise BoneError(f"Adapter {adapter_name} is merged: call unmerge_adapter() before swapping it.")

    new = dict(state_dict)
    targets: list[tuple[Tensor, Tensor | None]] = []
    for key, layer in layers.items():
        if layer.bone_variant[adapter_name] is not config.variant:
            raise BoneError(
                f"Adapter {adapter_name} is {layer.bone_variant[adapter_name].name} and the new one is "
                f"{config.variant.name}: load it beside, with load_adapter(), instead of swapping."
            )
        reshard(layer)
        for name, old in layer._parameters_of(adapter_name).items():
            value = new.pop(f"{key}.{name}.{adapter_name}", None)
            if value is not None and value.shape != old.shape:
                raise BoneError(
                    f"{key}.{name} is {tuple(old.shape)} and the new one is {tuple(value.shape)}: adapters have to "
                    "have the same r to be swapped; use load_adapter() instead."
                )
            targets.append((old, value))
    if new:
        raise BoneError(f"The new adapter has {next(iter(new))}, which the model does not have: use load_adapter().")
    with torch.no_grad():
        for old, value in targets:
            old.zero_() if value is None else old.copy_(part(value, old))
    for layer in layers.values():
        layer.bone_scaling[adapter_name] = 1.0
