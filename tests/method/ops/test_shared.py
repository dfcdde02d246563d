"""The block sum of one x is computed once, and never kept past x."""

import gc
import threading
import weakref
from contextlib import contextmanager

import pytest
import torch
from peft import get_peft_model

from bone_peft.method.ops import shared
from bone_peft.method.ops.shared import with_block_sum

from ...models import config_for, llama
from .layers import DEVICE, HALF, distance


def activation(*shape):
    return torch.randn(*shape, requires_grad=True).mul(2)


@contextmanager
def running(module=None):
    module = module or object()
    shared.opened(module, None)
    yield
    shared.closed(module)


def test_the_second_reader_gets_the_same_sum():
    x = activation(3, 40)
    with running():
        first, second = with_block_sum(x, 16), with_block_sum(x, 16)
    assert all(a is b for a, b in zip(first, second, strict=True))


def test_nothing_is_remembered_between_runs_or_outside_of_them():
    x = activation(3, 40)
    with running():
        first = with_block_sum(x, 16)
        with running():
            assert with_block_sum(x, 16)[1] is not first[1]
    with running():
        assert with_block_sum(x, 16)[1] is not first[1]
    assert with_block_sum(x, 16)[1] is not with_block_sum(x, 16)[1]
    assert not shared._runs.now


@pytest.mark.parametrize("checkpoints", [False, True])
def test_an_error_leaves_nothing_open(checkpoints):
    """A checkpoint ends its second run by one, as soon as it has what backward needs."""
    model = get_peft_model(llama(), config_for("bone", target_modules="all-linear"))
    if checkpoints:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.train()(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    else:
        down = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
        down.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(torch.tensor([[1, 2, 3]]))
    assert not shared._runs.now


def test_an_interruption_leaves_nothing_open_for_long():
    outer, inner = object(), object()
    shared.opened(outer, None)
    shared.opened(inner, None)
    shared.opened(outer, None)
    assert [run.module for run in shared._runs.now] == [outer]
    shared.closed(outer)
    assert not shared._runs.now


@pytest.mark.parametrize("how", ["numpy", "data", "dlpack"])
def test_memory_that_others_write_to_is_read_each_time(how):
    x = torch.randn(3, 32)
    with running():
        before = with_block_sum(x, 16)[1].clone()
        if how == "numpy":
            x.numpy()[:] += 1
        elif how == "data":
            x.data.add_(1)
        else:
            torch.from_dlpack(x).add_(1)
        torch.testing.assert_close(with_block_sum(x, 16)[1], before + 2)


def test_the_blocks_of_transformers_remember_without_autograd_too():
    attention = llama().model.layers[0].self_attn
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            x = torch.randn(3, 32)
            with running(attention):
                first = with_block_sum(x, 16)
                assert with_block_sum(x, 16)[1] is first[1]
            with running(attention):
                assert with_block_sum(x, 16)[1] is not first[1]
    x = torch.randn(3, 32)
    with running(attention):
        assert not with_block_sum(x, 16)[0].requires_grad
        assert with_block_sum(x.requires_grad_(), 16)[0].requires_grad


def test_a_leaf_that_asks_for_its_gradient_later_gets_it():
    x = torch.randn(3, 32)
    with running():
        assert not with_block_sum(x, 16)[0].requires_grad
        x.requires_grad_()
        assert with_block_sum(x, 16)[0].requires_grad


def test_never_stale():
    x = activation(3, 32)
    with running():
        before = with_block_sum(x, 16)[1].clone()
        x.add_(1)
        torch.testing.assert_close(with_block_sum(x, 16)[1], before + 2)
        assert with_block_sum(x, 8)[1].shape == (3, 8)
        assert with_block_sum(x.clone(), 8)[1] is not with_block_sum(x, 8)[1]


def test_a_sum_without_gradient_is_not_given_to_who_trains():
    x = activation(3, 32)
    with running():
        with torch.no_grad():
            assert not with_block_sum(x, 16)[0].requires_grad
        assert with_block_sum(x, 16)[0].requires_grad


def test_gradients_of_all_readers_add_up():
    leaf = torch.randn(5, 40, dtype=torch.float64, requires_grad=True)
    x = leaf * 1
    blocks = [torch.randn(16, 8, dtype=torch.float64) for _ in range(3)]
    weights = [torch.randn(40, 8, dtype=torch.float64) for _ in range(3)]

    def reader(block, weight):
        same, s, handle = with_block_sum(x, 16)
        return same @ weight + (s.detach() + handle - handle.detach()) @ block

    with running():
        total = sum(reader(*pair).square().sum() for pair in zip(blocks, weights, strict=True))
    found = torch.autograd.grad(total, leaf)
    s = torch.nn.functional.pad(leaf, (0, 8)).view(5, 3, 16).sum(1)
    truth = sum((leaf @ w + s @ b).square().sum() for b, w in zip(blocks, weights, strict=True))
    torch.testing.assert_close(found, torch.autograd.grad(truth, leaf))


def test_nothing_outlives_x():
    with running():
        x = activation(3, 32)
        same, s, _ = with_block_sum(x, 16)
        dead = weakref.ref(same), weakref.ref(s)
        del x, same, s, _
        gc.collect()
        assert [ref() for ref in dead] == [None, None]


def test_threads_do_not_share():
    x = activation(3, 32)
    theirs = []

    def other():
        with running():
            theirs.append(with_block_sum(x, 16)[1])

    with running():
        mine = with_block_sum(x, 16)[1]
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert with_block_sum(x, 16)[1] is mine
    assert theirs[0] is not mine
    torch.testing.assert_close(theirs[0], mine)


def test_inference_mode():
    with torch.inference_mode():
        x = torch.randn(3, 32)
        with running():
            torch.testing.assert_close(with_block_sum(x, 16)[1], x.view(3, 2, 16).sum(1))


def test_the_native_sum_is_shared_too():
    x = activation(2, 3, 40)
    with running():
        first = shared.shared_block_sum(x, 16)
        assert shared.shared_block_sum(x, 16) is first
    torch.testing.assert_close(first, torch.nn.functional.pad(x, (0, 8)).view(6, 3, 16).sum(1))
    dead = weakref.ref(first)
    del x, first
    gc.collect()
    assert dead() is None


@pytest.mark.parametrize("features", [32, 40])
def test_the_operator_for_the_compiler(features):
    x = torch.randn(2, 3, features, dtype=HALF, device=DEVICE, requires_grad=True)
    torch.library.opcheck(torch.ops.bone_peft.block_sum, (x, 16), test_utils=("test_schema", "test_faketensor"))
    s, handle = shared._FusedBlockSum.apply(x, 16)
    exact = torch.nn.functional.pad(x.detach().double(), (0, -features % 16)).view(6, -1, 16).sum(1)
    assert distance(s, exact) < torch.finfo(HALF).eps
    ds = torch.randn(6, 16, device=DEVICE)
    (dx,) = torch.autograd.grad(handle, x, ds)
    torch.testing.assert_close(dx, ds.repeat(1, 3)[:, :features].view(x.shape).to(HALF))
