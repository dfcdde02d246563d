"""A run stops at the first number that is none, and says which step it was and what the likely cause is."""

import math
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.method.tuner.sharded import own, whole


def all_finite(numbers: list[Any]) -> Any:
    """A tensor that is true when every number in ``numbers`` (tensors or floats) is finite; no wait for the device.

    Where each process has a part of one, all of them have to ask.
    """
    import torch

    tensors = [torch.as_tensor(number) for number in numbers] or [torch.zeros(())]
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), "cpu")
    return torch.stack([whole(torch.isfinite(tensor.to(device)).all()) for tensor in tensors]).all()


def weights_are_finite(model: Any) -> bool:
    """True when no trained parameter holds NaN or infinity, as far as this process has them."""
    trained = [own(parameter) for parameter in model.parameters() if parameter.requires_grad]
    return not trained or bool(all_finite(trained))


def not_finite(what: str, step: int, model: Any, learning_rate: float, checkpoint: str | None) -> BoneError:
    """The sentence for a run that met ``what`` (``"loss is NaN"``) at ``step``."""
    good = f"the last good checkpoint is {checkpoint} (--continue-from)" if checkpoint else "there is no checkpoint yet"
    cause = _cause(model, step, learning_rate)
    return BoneError(f"Step {step}: the {what}, so the run stopped and wrote no adapter; {cause}; {good}.")


def in_words(number: float) -> str:
    """``NaN``, ``infinite`` or the number."""
    return "NaN" if math.isnan(number) else "infinite" if math.isinf(number) else f"{number:.4g}"


def _cause(model: Any, step: int, learning_rate: float) -> str:
    if any(str(parameter.dtype) == "torch.float16" for parameter in model.parameters()):
        return "float16 reaches only to 65504: set dtype to bfloat16 or float32"
    if step == 1 and weights_are_finite(model):
        return "it is the first step, so the base itself does not give numbers for these rows: try dtype float32"
    return f"the learning rate of {learning_rate:g} is the likely cause: lower training.learning_rate (--lr)"
