"""``load_adapter`` of a Transformers model asks PEFT for the keys in the model: Transformers >= 5.0 with PEFT >= 0.19.

Before, it gives the state dict to PEFT, which knows them.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any

from .undoing import set_attribute


def add_keys(undo: ExitStack, config_cls: Any, prefix: str, leaf: str) -> None:
    """Have the keys of adapters of ``config_cls``, which begin with ``prefix``, end with their name and ``leaf``."""
    try:
        from peft.utils import transformers_weight_conversion
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        return
    original = transformers_weight_conversion.build_peft_weight_mapping

    def build_peft_weight_mapping(weight_conversions: Any, adapter_name: str, peft_config: Any = None) -> Any:
        mapping = original(weight_conversions, adapter_name, peft_config=peft_config)
        if isinstance(peft_config, config_cls):
            key = rf"({prefix}[^.]*\.{re.escape(adapter_name)})$"
            mapping.append(WeightRenaming(source_patterns=key, target_patterns=rf"\1.{leaf}"))
        return mapping

    set_attribute(undo, transformers_weight_conversion, "build_peft_weight_mapping", build_peft_weight_mapping)
