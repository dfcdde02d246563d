"""Attention within each row of a line of rows, under a name of its own in Transformers' table of attentions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "bone_rows"
_FLASH_WIDTH = 256
_SHORT = 128
"""Up to here PyTorch's kernel for CPUs takes longer in bfloat16 than products and a softmax do."""


def row_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row; Transformers' own for SDPA where the batch is not a line.

    Args:
        query: ``(1, heads, tokens, width)``; ``key`` and ``value`` may have fewer heads.
        sliding_window: how many tokens each token sees, itself among them.
        cu_seq_lens_q: where each row starts and the last one ends, ``(rows + 1,)``, int32. None: not a line.
        max_length_q: no row is longer.

    Returns:
        ``(1, tokens, heads, width)``, and None where others return weights.

    Raises:
        NotImplementedError: the model wants something of its attention that is not done here.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    for extra in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(extra) is not None:
            raise NotImplementedError(f"attention with {extra}")
    if attention_mask is not None:
        raise NotImplementedError("a mask over a line of rows")
    if _flash_takes(query, value):
        width = value.shape[-1]
        if width < query.shape[-1]:
            value = pad(value, (0, query.shape[-1] - width))
        line = _flash(
            # Not tensor[0], whose gradient is copied into zeros.
            *(tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)),
            starts=cu_seq_lens_q,
            longest=max_length_q,
            dropout=dropout,
            scale=scaling,
            window=sliding_window,
        )
        return line[None, ..., :width], None
    place = _places(cu_seq_lens_q, max_length_q, query.shape[2])
    spread = [_spread(tensor, place, len(cu_seq_lens_q) - 1, max_length_q) for tensor in (query, key, value)]
    # What fills up a short row is behind it, where its own tokens do not look.
    mask = None if sliding_window is None or max_length_q <= sliding_window else _window(max_length_q, sliding_window)
    short = query.device.type == "cpu" and query.dtype != torch.float32 and max_length_q <= _SHORT
    with sdpa_kernel(SDPBackend.MATH) if short else nullcontext():
        attention: Any = scaled_dot_product_attention
        out = attention(
            *spread,
            attn_mask=None if mask is None else mask.to(query.device),
            is_causal=mask is None,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return out.transpose(1, 2).flatten(0, 1)[None, place], None


def is_fast(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one kernel does all rows, which the compiler can follow."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and torch.backends.cuda.is_flash_attention_available()
    )


def _flash_takes(query: Tensor, value: Tensor) -> bool:
    width = query.shape[-1]
    return width <= _FLASH_WIDTH and width % 8 == 0 and value.shape[-1] <= width and is_fast(query.device, query.dtype)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    starts: Tensor,
    longest: int,
    dropout: float,
    scale: float | None,
    window: int | None,
) -> Tensor:
    # torch.nn.attention.varlen calls this operator as well, from PyTorch 2.10 on and with other arguments each time.
    return torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        starts,
        starts,
        longest,
        longest,
        dropout,
        True,
        False,
        scale=scale,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )[0]


def _places(starts: Tensor, longest: int, tokens: int) -> Tensor:
    """Where each token of the line is in a table with a row of ``longest`` places for each row."""
    rows = torch.arange(len(starts) - 1, device=starts.device)
    row = torch.repeat_interleave(rows, starts.diff(), output_size=tokens)
    return torch.arange(tokens, device=starts.device) - starts[row] + row * longest


def _spread(line: Tensor, place: Tensor, rows: int, longest: int) -> Tensor:
    """``(1, heads, tokens, width)`` as ``(rows, heads, longest, width)``, zeros behind each row."""
    table = line.new_zeros(rows * longest, line.shape[1], line.shape[3])
    return table.index_copy(0, place, line[0].transpose(0, 1)).unflatten(0, (rows, longest)).transpose(1, 2)


def _window(length: int, window: int) -> Tensor:
    place = torch.arange(length)
    back = place[:, None] - place
    return (back >= 0) & (back < window)


def _row_mask(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """None for a line of rows, which comes without a mask."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, row_attention)
AttentionMaskInterface.register(NAME, _row_mask)


@contextmanager
def by_rows(model: Any) -> Iterator[None]:
    """Inside, ``model`` takes lines of rows as well as padded batches. Without a mask it is only for training."""
    if getattr(model, "takes_equal_rows", False):
        yield  # there is no attention to be told
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
