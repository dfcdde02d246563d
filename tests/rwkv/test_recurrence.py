"""The recurrence in chunks against the recurrence itself, token by token in float64."""

import pytest
import torch
import torch.nn.functional as F

from bone_peft.rwkv.recurrence import recurrence
from bone_peft.rwkv.token_shift import token_shift

from .conftest import assert_same_with_gradients

HEADS, WIDTH = 2, 8


def inputs(batch: int, time: int, dtype=torch.float64, *, hard: bool = False, width=WIDTH) -> list[torch.Tensor]:
    r, k, v, decay, direction = (torch.randn(batch, time, HEADS, width, dtype=torch.float64) for _ in range(5))
    # ``hard``: the fastest decay that RWKV-7 can have, in every channel.
    w = torch.exp(-(torch.e**-0.5) * (torch.ones_like(decay) if hard else torch.sigmoid(3 * decay)))
    direction = F.normalize(direction, dim=-1)
    rate = torch.rand(batch, time, HEADS, width, dtype=torch.float64)
    state = torch.randn(batch, HEADS, width, width, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (r, w, k, v, -direction, direction * rate, state)]


def by_token(r, w, k, v, a, b, state, mask=None):
    outputs, s = [], state.mT
    for t in range(r.shape[1]):
        new = s * w[:, t, :, None, :]
        new = new + torch.einsum("bhij,bhj,bhk->bhik", s, a[:, t], b[:, t])
        new = new + torch.einsum("bhi,bhj->bhij", v[:, t], k[:, t])
        y = torch.einsum("bhij,bhj->bhi", new, r[:, t])
        if mask is not None:
            here = mask[:, t, None, None]
            y = y * here
            new = torch.where(here[..., None], new, s)
        outputs.append(y)
        s = new
    return torch.stack(outputs, 1), s.mT


@pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 50])
@pytest.mark.parametrize("masked", [False, True])
def test_output_state_and_gradients(time, masked):
    values = inputs(2, time)
    mask = torch.rand(2, time) > 0.3 if masked else None
    assert_same_with_gradients(by_token, recurrence, values, mask)


@pytest.mark.parametrize("hard", [False, True])
def test_float32_loses_nothing_that_float32_has(hard):
    values = inputs(2, 64, torch.float32, hard=hard)
    expected = by_token(*(x.detach().double() for x in values))
    for a, b in zip(expected, recurrence(*values), strict=True):
        assert float((a - b).norm() / a.norm()) < 2e-6


def test_bfloat16_comes_back_as_bfloat16():
    *values, state = inputs(1, 20, torch.float32)
    low = [x.bfloat16() for x in values]
    found, last = recurrence(*low, state)
    assert found.dtype == torch.bfloat16 and last.dtype == torch.float32
    expected, _ = by_token(*(x.double() for x in low), state.double())
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)


def test_a_split_sequence_goes_on_from_its_state():
    *values, state = inputs(2, 40)
    whole, last = recurrence(*values, state)
    first, middle = recurrence(*(x[:, :23] for x in values), state)
    second, end = recurrence(*(x[:, 23:] for x in values), middle)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(end, last)


def test_autocast_leaves_it_alone():
    values = inputs(1, 20, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = recurrence(*values)[0]
    torch.testing.assert_close(found, recurrence(*values)[0], rtol=0, atol=0)


def test_token_shift_looks_past_padding():
    x, before = torch.randn(3, 12, 5), torch.randn(3, 5)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[0, :4] = mask[1, 7:] = mask[2, 5] = False
    shifted, last = token_shift(x, before, mask)
    for row in range(3):
        carry = before[row]
        for t in range(12):
            assert torch.equal(shifted[row, t], carry)
            carry = x[row, t] if mask[row, t] else carry
        assert torch.equal(last[row], carry)
