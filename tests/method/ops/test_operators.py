"""What the compiler is told of an operator is what the operator does."""

import pytest
import torch

import bone_peft.method.variants  # noqa: F401  (defines the operators)

from .layers import DEVICE, HALF, KERNELS


def tensor(*shape: int, dtype=HALF):
    return torch.randn(shape, dtype=dtype, device=DEVICE)


def calls(dtype):
    """Arguments by operator: layers of 3 x 2 tokens, from 32 to 48 with r=16, with all gradients and with few."""
    x, y, s, weight, bias = (
        tensor(3, 2, 32),
        tensor(3, 2, 48),
        tensor(6, 16),
        tensor(48, 32),
        tensor(48),
    )
    bone, bat, bat_input = tensor(16, 48, dtype=dtype), tensor(3, 16, 16, dtype=dtype), tensor(2, 16, 16, dtype=dtype)
    yield "block_sum", (x, 16)
    yield "linear_bone", (x, s, weight, bias, bone)
    yield "linear_bone", (x, s, weight, None, bone)
    yield "add_bone", (y, s, bone)
    yield "bone_backward", (y, s, weight, bone.to(HALF), dtype, torch.float32, True)
    yield "bone_backward", (y, None, None, bone.to(HALF), dtype, HALF, False)
    yield "linear_bat", (x, weight, bias, bat)
    yield "bat_backward", (y, x, weight, bat, True)
    yield "bat_backward", (y, x, weight, bat, False)
    yield "bat_backward", (y, None, weight, bat, True)
    yield "linear_bat_input", (x, weight, bias, bat_input)
    yield "linear_bat_input_backward", (y, x, weight, bat_input, True)
    yield "linear_bat_input_backward", (y, None, weight, bat_input, True)
    yield "linear_bat_input_backward", (y, x, weight, bat_input, False)
    yield "bat_input", (x, bat_input)
    yield "bat_input_backward", (x, s, x, bat_input, True)
    yield "bat_input_backward", (x, s, None, bat_input, True)
    yield "bat_input_backward", (x, s, x, bat_input, False)
    ends = torch.tensor([2, 2, 6], dtype=torch.int32, device=DEVICE)
    x, y, weight, bat = tensor(6, 32), tensor(6, 48), tensor(3, 48, 32), tensor(3, 3, 16, 16, dtype=dtype)
    yield "grouped_product", (x, tensor(3, 32, 48), ends)
    yield "grouped_outer", (x, y, ends, dtype)
    blocks, tokens = tensor(3, 2, 16, 16, dtype=dtype), torch.tensor([0, 2, 1, 1, 2, 0], device=DEVICE)
    yield "grouped_bat_input", (x, blocks, ends, None)
    yield "grouped_bat_input", (tensor(3, 32), blocks, ends, tokens)
    yield "grouped_bat_input_backward", (x, tensor(6, 16), tensor(6, 32), blocks, ends, None, True)
    yield "grouped_bat_input_backward", (x, tensor(6, 16), tensor(3, 32), blocks, ends, tokens, False)
    yield "grouped_bat_input_backward", (x, tensor(6, 16), None, blocks, ends, tokens, True)
    if KERNELS:
        block, tokens = tensor(3, 16, 48, dtype=dtype), torch.tensor([0, 2, 1, 1, 2, 0], device=DEVICE)
        yield "add_grouped_bone", (y, tensor(3, 16), block, ends, tokens)
        yield "grouped_bone_backward", (y, tensor(3, 16), block, ends, tokens, 3, True)
        yield "grouped_bone_backward", (y, None, block, ends, tokens, 3, True)
        yield "grouped_bone_backward", (y, tensor(3, 16), block, ends, tokens, 3, False)
    yield "token_sums", (x, torch.tensor([[0, 5], [3, 2], [1, 4]], device=DEVICE))
    yield "grouped_bat_weight", (weight, bat)
    yield "grouped_bat_backward", (weight, bat, tensor(3, 48, 32), True)
    yield "grouped_bat_backward", (weight, bat, tensor(3, 48, 32), False)


@pytest.mark.parametrize("dtype", [HALF, torch.float32])
def test_shapes_dtypes_and_aliases(dtype):
    seen = set()
    for name, arguments in calls(dtype):
        seen.add(name)
        operator = getattr(torch.ops.bone_peft, name)
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
        transposed = [
            arg.mT.contiguous().mT if isinstance(arg, torch.Tensor) and arg.ndim > 1 else arg for arg in arguments
        ]
        torch.testing.assert_close(operator(*transposed), operator(*arguments), rtol=5e-2, atol=5e-2)
    defined = {name for name in dir(torch.ops.bone_peft) if not name.startswith("_")} - {"name"}
    of_kernels = set() if KERNELS else {"add_grouped_bone", "grouped_bone_backward"}
    assert seen | of_kernels | {"linear_bone_token"} == defined
