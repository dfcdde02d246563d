"""DeepSpeed's ZeRO-3: each process has a part of every parameter, which is empty but while it is computed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


def builds_partitioned() -> bool:
    """Whether models that Transformers builds or loads are partitioned, and placed, on their way."""
    from transformers.integrations import deepspeed

    return deepspeed.is_deepspeed_zero3_enabled()


def is_partitioned(parameter: Any) -> bool:
    """Whether this process has a part of ``parameter`` alone."""
    return hasattr(parameter, "ds_tensor")


def put_together(parameters: Iterable[Any]) -> AbstractContextManager[Any]:
    """Inside, those of ``parameters`` that are partitioned are whole, to be read. Every process has to ask."""
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters(partitioned)


@contextmanager
def run_without_its_engine(model: Any) -> Iterator[None]:
    """Inside, ``model`` itself can be called: what it reads is put together for it, as DeepSpeed's engine has it done.

    Every process has to make the same calls.
    """
    tables = [module._parameters for module in model.modules() if hasattr(module._parameters, "_in_forward")]
    for table in tables:
        table._in_forward = True
    try:
        yield
    finally:
        for table in tables:
            table._in_forward = False


@contextmanager
def not_partitioned() -> Iterator[None]:
    """Inside, Transformers builds models as if DeepSpeed were not there."""
    from transformers.integrations import deepspeed

    before = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before
