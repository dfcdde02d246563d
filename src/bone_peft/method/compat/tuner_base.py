"""PEFT's base classes of tuners, with what newer versions of them have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import EMBEDDING_LAYER_NAMES, match_target_against_key
from torch import Tensor, nn

from .tied_names import embedding_name, tied_weights


class _TunerUntil019(BaseTuner):
    """PEFT < 0.19: ``ensure_weight_tying`` for ``modules_to_save`` alone, and under another name."""

    def _get_module_names_tied_with_embedding(self) -> list[str]:
        # PEFT's own fails where a model has regular expressions for names.
        embedding = f"{embedding_name(self.model)}.weight"
        ties = {frozenset(tie) for tie in tied_weights(self.model).items() if embedding in tie}
        return sorted({name.rpartition(".")[0] for tie in ties for name in tie if name != embedding})

    def _add_modules_to_tie(self, peft_config: Any, tied_weight_keys: Any) -> None:
        self._add_modules_to_save_to_tie(peft_config, tied_weight_keys)

    def _check_tied_modules(self, model: nn.Module, peft_config: Any) -> None:
        if peft_config.ensure_weight_tying and not peft_config.modules_to_save:
            targets: Any = peft_config.target_modules or ()
            is_target: Any = match_target_against_key if isinstance(targets, str) else _is_named
            tied = self._get_module_names_tied_with_embedding()
            if tied and any(is_target(targets, name) for name in EMBEDDING_LAYER_NAMES):
                self._add_targets_to_tie(peft_config, tied)
        super()._check_tied_modules(model, peft_config)


def _is_named(targets: Any, name: str) -> bool:
    return any(target.rpartition(".")[2] == name for target in targets)


class _LayerUntil020(BaseTunerLayer):
    """PEFT < 0.20: the weight is each method's own affair."""

    quantization_backend: Any

    def get_base_weight(self) -> Tensor:
        base: Any = self.get_base_layer()
        backend = self.quantization_backend
        return base.weight.data if backend is None else backend.get_base_weight(base)

    def set_base_weight(self, weight_data: Tensor) -> None:
        if self.quantization_backend is None:
            self.get_base_layer().weight.data = weight_data
        else:
            self.quantization_backend.set_base_weight(self, weight_data)


if TYPE_CHECKING:
    Tuner = BaseTuner
    TunerLayer = BaseTunerLayer
else:
    Tuner = BaseTuner if hasattr(BaseTuner, "_add_modules_to_save_to_tie") else _TunerUntil019
    TunerLayer = BaseTunerLayer if hasattr(BaseTunerLayer, "set_base_weight") else _LayerUntil020
