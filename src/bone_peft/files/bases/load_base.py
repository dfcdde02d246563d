"""``load_base``: the name of a base model in, model and tokenizer out."""

from typing import Any, Protocol

from bone_peft.errors import BoneError, explains_missing_extras
from bone_peft.io.place import with_home
from bone_peft.method.compat.tensor_parallel import check_known
from bone_peft.method.compat.zero3 import builds_partitioned, is_partitioned
from bone_peft.method.tuner.sharded import own

from ..checkpoints.checkpoint import is_finite
from . import from_gguf, from_pth, from_transformers

DTYPES = ("auto", "bfloat16", "float16", "float32")
QUANTIZE = ("none", "8bit", "4bit")

ONE_ANSWER: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1}
"""For ``generate()``, whatever the base's own config says."""


class Loader(Protocol):
    """One family of base files; a module with these three functions is one."""

    def accepts(self, base: str) -> bool:
        """True when ``base`` names a file or folder of this family."""

    def load(self, base: str, *, trust_remote_code: bool, **kwargs: Any) -> tuple[Any, Any]:
        """Return ``(model, tokenizer)``; ``kwargs`` go to ``from_pretrained``."""

    def load_tokenizer(self, base: str, *, trust_remote_code: bool) -> Any:
        """Return the tokenizer; no weights are read."""


# The first that accepts wins; `from_transformers` takes every name, so it stays last.
LOADERS: list[Loader] = [from_gguf, from_pth, from_transformers]


@explains_missing_extras
def load_base(
    base: str,
    *,
    dtype: str = "bfloat16",
    quantize: str = "none",
    device: Any = "cpu",
    trust_remote_code: bool = False,
    parts: int = 1,
) -> tuple[Any, Any]:
    """Load a base model and its tokenizer.

    Args:
        base: a folder, a hub name, a ``.gguf`` file, or ``package:NAME`` (the one ``.gguf`` file inside the
            installed Python package NAME).
        dtype: of the weights: ``"auto"`` (as stored), ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        quantize: ``"none"``, or ``"8bit"`` / ``"4bit"`` (bitsandbytes).
        device: a torch device for the weights.
        trust_remote_code: run the Python code that a base brings along, as Transformers means it.
        parts: how many processes split every layer among them (tensor parallel). Each of them has to call.

    Returns:
        ``(model, tokenizer)``. The model is in eval mode; the tokenizer has a padding token.

    Raises:
        BoneError: the base is missing or cannot be read, or an option is unknown.
    """
    import torch

    if dtype not in DTYPES:
        raise BoneError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")
    base = with_home(base)
    loader = next(loader for loader in LOADERS if loader.accepts(base))
    kwargs: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    kwargs["dtype"] = dtype if dtype == "auto" else getattr(torch, dtype)
    if parts > 1 and loader is not from_transformers:
        raise BoneError(f"Tensor parallel splits models in Transformers' own format, and {base!r} is none: take ddp.")
    if parts > 1:
        kwargs["distributed_config"] = _split_among(parts, quantize)
    elif str(device) != "cpu" and not builds_partitioned():
        kwargs["device_map"] = {"": device}
    if (quantization := _quantization(quantize, dtype)) is not None:
        kwargs["quantization_config"] = quantization
    try:
        model, tokenizer = loader.load(base, **kwargs)
    except BoneError:
        raise
    except Exception as error:  # whatever a reader trips over: the file is the user's, the sentence is ours
        raise BoneError(f"The base {base!r} cannot be loaded: {_first_line(error)}") from error
    if parts > 1:
        # The Trainer would refuse to save the optimizer of what it is told is split. Adapters are whole.
        model._is_distributed_loading_by_transformers = False
    _check_finite(model, base)
    _check_runs(model, base)
    return model.eval(), _padded(tokenizer)


@explains_missing_extras
def load_tokenizer(base: str, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer that :func:`load_base` gives, without the model.

    Raises:
        BoneError: the base is missing, or has no tokenizer that can be read.
    """
    base = with_home(base)
    loader = next(loader for loader in LOADERS if loader.accepts(base))
    try:
        return _padded(loader.load_tokenizer(base, trust_remote_code=trust_remote_code))
    except BoneError:
        raise
    except Exception as error:
        raise BoneError(f"The tokenizer of {base!r} cannot be loaded: {_first_line(error)}") from error


def _padded(tokenizer: Any) -> Any:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_finite(model: Any, base: str) -> None:
    for name, parameter in model.named_parameters():
        values = own(parameter)
        # What is quantized is whole numbers, and smaller types have no infinity.
        if values.is_floating_point() and values.itemsize > 1 and not is_finite(values):
            raise BoneError(
                f"The base {base!r} holds NaN or infinity in {name}: it is broken, or its numbers are beyond what "
                f"{str(parameter.dtype).removeprefix('torch.')} holds."
            )


def _check_runs(model: Any, base: str) -> None:
    """Answer with one token: what is wrong with the configs shows there, if it did not before."""
    import torch

    if any(map(is_partitioned, model.parameters())):
        return  # It runs once DeepSpeed has prepared it.
    one = torch.ones(1, 1, dtype=torch.long, device=model.device)
    try:
        with torch.inference_mode():
            model.eval().generate(
                input_ids=one, attention_mask=one, max_new_tokens=1, do_sample=False, pad_token_id=0, **ONE_ANSWER
            )
    except Exception as error:
        raise BoneError(f"The base {base!r} cannot be run: {_first_line(error)}") from error


def _split_among(parts: int, quantize: str) -> Any:
    if quantize != "none":
        raise BoneError(f"A base in {quantize} cannot be split by tensor parallel: leave one of them out.")
    check_known()
    from transformers.distributed import DistributedConfig

    return DistributedConfig(tp_size=parts)


def _quantization(quantize: str, dtype: str) -> Any:
    if quantize not in QUANTIZE:
        raise BoneError(f"quantize {quantize!r} is unknown; choose one of {', '.join(QUANTIZE)}.")
    if quantize == "none":
        return None
    from transformers import BitsAndBytesConfig

    compute = "bfloat16" if dtype == "auto" else dtype
    return BitsAndBytesConfig(
        load_in_8bit=quantize == "8bit",
        load_in_4bit=quantize == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
    )


def _first_line(error: Exception) -> str:
    """As the end of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(" :;,.") + "." if lines else f"{type(error).__name__}."
