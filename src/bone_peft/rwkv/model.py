"""``RwkvForCausalLM``: the model of ``rwkv7-hf``, made for training.

That package is written to be read and to give the same bits whatever the batch: it walks token by token, and pads every
matrix product. Here the same architecture runs on :mod:`bone_peft.rwkv.recurrence` and plain ``nn.Linear``.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch.nn.functional as F
from rwkv7_hf import RWKV7ChannelMix, RWKV7Config, RWKV7ForCausalLM, RWKV7TimeMix
from rwkv7_hf.modeling_rwkv7 import RWKV7Linear, RWKV7LowRank
from torch import Tensor, nn

from .recurrence import recurrence, token_shift


class RwkvForCausalLM(RWKV7ForCausalLM):
    """RWKV-7 with a language model head.

    Modules and parameters have the names of ``rwkv7-hf``, but for the vectors of a layer: they are in a module of their
    own, ``mix``, so that ``modules_to_save`` can name them.
    """

    # The library's loss is a mean over the batch at hand, which is what this word tells the Trainer.
    accepts_loss_kwargs = False

    def __init__(self, config: RWKV7Config) -> None:
        super().__init__(config)
        for module in list(self.modules()):
            if isinstance(module, RWKV7LowRank):
                for index in (0, 2):
                    module.lora[index].__class__ = _LowRankFactor
        for module in list(self.modules()):
            own = _OWN.get(type(module))
            if own is not None:
                module.__class__ = own
            if isinstance(module, (_TimeMix, _ChannelMix)):
                module.mix = _Vectors(module)


class _LowRankFactor(nn.Module):
    """Not an ``nn.Linear``, so that ``all-linear`` and quantization pass it by: in ``.pth`` files it is no layer."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class _Vectors(nn.Module):
    """Takes the parameters over that a layer holds itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in list(layer._parameters):
            self.register_parameter(name, layer._parameters.pop(name))


class _Mixed(nn.Module):
    """A layer that finds its vectors in ``mix``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "mix":
                raise
            return getattr(self.mix, name)


def _with(function: Any, **replacements: Any) -> Any:
    """A function of the library, which calls ours in place of some of its own. The library stays as it is."""
    return FunctionType(
        function.__code__, {**function.__globals__, **replacements}, function.__name__, function.__defaults__
    )


class _TimeMix(_Mixed, RWKV7TimeMix):
    forward = _with(
        RWKV7TimeMix.forward, rwkv7_recurrent=recurrence, _masked_token_shift=token_shift, _linear_reference=F.linear
    )


class _ChannelMix(_Mixed, RWKV7ChannelMix):
    forward = _with(RWKV7ChannelMix.forward, _masked_token_shift=token_shift)


_OWN: dict[type, type] = {RWKV7Linear: nn.Linear, RWKV7TimeMix: _TimeMix, RWKV7ChannelMix: _ChannelMix}
