"""``RwkvForCausalLM``: the model of ``rwkv7-hf``, made for training.

That package is written to be read and to give the same bits whatever the batch: it walks token by token, and pads every
matrix product. Here the same architecture runs on :mod:`bone_peft.rwkv.recurrence`, or on
:mod:`bone_peft.rwkv.kernels`, and plain ``nn.Linear``.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from rwkv7_hf import RWKV7Cache, RWKV7ChannelMix, RWKV7Config, RWKV7ForCausalLM, RWKV7Model, RWKV7TimeMix
from rwkv7_hf.modeling_rwkv7 import RWKV7Linear, RWKV7LowRank, _normalize_attention_mask
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import CausalLMOutputWithPast

from .kernels import recurrence
from .token_shift import all_there, token_shift


class RwkvForCausalLM(RWKV7ForCausalLM):
    """RWKV-7 with a language model head.

    Modules and parameters have the names of ``rwkv7-hf``, but for the vectors of a layer: they are in a module of their
    own, ``mix``, so that ``modules_to_save`` can name them.
    """

    takes_equal_rows = True
    """Rows of one length, end to end in a line (``cu_seq_lens_q``, ``max_length_q``), are computed as a batch."""

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

    def forward(
        self,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: Tensor | int = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As Transformers' own models.

        Args:
            labels: ``(batch, time)``, token ids, -100 where nothing is to be learnt.
            logits_to_keep: the places that logits are wanted for, ``(places,)``, or how many at the end; 0 for all.
            num_items_in_batch: what the sum of the losses is divided by, instead of by how many they are.
        """
        output = self.model(input_ids=input_ids, **{**kwargs, "return_dict": True})
        hidden = output.last_hidden_state
        if isinstance(logits_to_keep, Tensor):
            hidden = hidden.index_select(1, logits_to_keep)
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=output.past_key_values, hidden_states=output.hidden_states
        )


class _Model(RWKV7Model):
    _walk: Any
    """The library's ``forward``."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int = 0,
        **kwargs: Any,
    ) -> Any:
        """As the library's, and two things more.

        Several documents in one row, told by positions that start over, keep to themselves; where ``cu_seq_lens_q``
        and ``max_length_q`` say that all are of one length, nothing waits for the GPU. And ``use_cache=True`` gives
        the state, cut off from backward, of a model in training too, where the library never does.
        """
        if self.training and kwargs.get("use_cache"):
            return self._with_state(input_ids, attention_mask, **kwargs)
        if input_ids is None or attention_mask is not None or len(input_ids) != 1:
            return self._walk(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if cu_seq_lens_q is not None and (len(cu_seq_lens_q) - 1) * max_length_q == input_ids.shape[1]:
            output = self._walk(input_ids.view(-1, max_length_q), **{**kwargs, "use_cache": False})
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[None]
            return output
        starts = _starts(position_ids)
        if starts.numel() < 2:
            return self._walk(input_ids=input_ids, **kwargs)
        documents = list(input_ids[0].tensor_split(starts[1:].tolist()))
        mask = pad_sequence([torch.ones_like(document) for document in documents], batch_first=True)
        output = self._walk(pad_sequence(documents, batch_first=True), mask, **{**kwargs, "use_cache": False})
        output.last_hidden_state = output.last_hidden_state[mask.bool()].unsqueeze(0)
        return output

    def _with_state(self, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        states: list[tuple[Tensor, ...]] = []

        def keep(layer: Any, given: Any, outputs: tuple[Tensor, ...]) -> None:
            states.append(tuple(state.detach() for state in outputs[1:4]))

        hooks = [layer.register_forward_hook(keep) for layer in self.layers]
        try:
            output = self._walk(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        output.past_key_values = RWKV7Cache(*zip(*states, strict=True))
        return output


def _starts(position_ids: Tensor | None) -> Tensor:
    """Where documents begin in a batch of one row."""
    return torch.empty(0) if position_ids is None else position_ids[0].eq(0).nonzero().flatten()


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


def _mask(attention_mask: Tensor | None, batch: int, time: int, device: torch.device) -> Tensor:
    """The library's, but for batches without padding, which :func:`hides_nothing` knows."""
    if attention_mask is None:
        return all_there(batch, time, device)
    return _normalize_attention_mask(attention_mask, batch, time, device).contiguous()


_Model._walk = _with(RWKV7Model.forward, _normalize_attention_mask=_mask)


class _TimeMix(_Mixed, RWKV7TimeMix):
    forward = _with(
        RWKV7TimeMix.forward, rwkv7_recurrent=recurrence, _masked_token_shift=token_shift, _linear_reference=F.linear
    )


class _ChannelMix(_Mixed, RWKV7ChannelMix):
    forward = _with(RWKV7ChannelMix.forward, _masked_token_shift=token_shift)


_OWN: dict[type, type] = {
    RWKV7Model: _Model,
    RWKV7Linear: nn.Linear,
    RWKV7TimeMix: _TimeMix,
    RWKV7ChannelMix: _ChannelMix,
}
