"""How much of each mixture of experts ``target_modules="all-linear"`` reaches, at the size of its default config.

    python -m checks.reach [ARCHITECTURE ...]

Of Transformers' causal language models that hold experts; left out, all of them. Built on the meta device.
Shares are of all parameters but the embeddings. Exits with 1 if one is below 97 % whose experts are of a known kind.
"""

from __future__ import annotations

import sys
import warnings

import torch
import transformers
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bone_peft import BoneConfig, BoneLayer
from bone_peft.method.tuner.experts.kinds import kind_of
from bone_peft.method.tuner.experts.left_out import left_out

LEAST = 0.97


def main() -> int:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    low = 0
    for name in sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name))
        except Exception as error:  # a config that is not complete by itself, or needs a package
            if sys.argv[1:]:
                print(f"{name}: Transformers does not build its own default ({type(error).__name__})")
            continue
        known = any(kind_of(module) is not None for module in model.modules())
        if known or any("xpert" in why for why in left_out(model).values() if "Expert" in why.partition(",")[0]):
            share = reach(model)
            low += known and share < LEAST
            print(f"{name}: {share:.1%} of {_body(model):,}{'' if known else ' (its experts are of no known kind)'}")
    return int(low > 0)


def reach(model: nn.Module) -> float:
    """Share of the parameters that adapted layers hold."""
    total = _body(model)
    tuned = get_peft_model(model, BoneConfig(r=1, target_modules="all-linear"), low_cpu_mem_usage=True)
    layers = [module for module in tuned.modules() if isinstance(module, BoneLayer)]
    held = sum({id(p): p.numel() for layer in layers for p in layer.get_base_layer().parameters()}.values())
    tuned.unload()
    return held / total


def _body(model: nn.Module) -> int:
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    heads = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in [*heads, model.get_output_embeddings()]:  # type: ignore[operator]
        sizes.pop(id(getattr(module, "weight", None)), None)
    return sum(sizes.values())


if __name__ == "__main__":
    sys.exit(main())
