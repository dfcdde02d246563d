"""The one exception that is meant for people to read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
_EXTRAS = {
    "datasets": "train",
    "matplotlib": "train",
    "tensorboard": "train",
    "trl": "train",
    "bitsandbytes": "bitsandbytes",
    "fla": "fla",
    "gguf": "gguf",
    "reasoning_gym": "gym",
    "rwkv": "rwkv",
    "rwkv7_hf": "rwkv",
}
"""Which extra brings which module."""


class BoneError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    A ``ValueError``, so code written for PEFT's own errors catches it; the command line prints it without a
    traceback and exits with code 2.
    """


def explains_missing_extras(function: _Function) -> _Function:
    """Have ``function`` say what to type where a package is missing that an extra brings."""

    @wraps(function)
    def explaining(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module not in _EXTRAS:
                raise
            package = module.replace("_", "-")
            raise BoneError(
                f"This needs the package {package}, which is not installed: pip install 'bone-peft[{_EXTRAS[module]}]'"
            ) from error

    return explaining  # type: ignore[return-value]


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Say in an error which layer it is about."""
    try:
        yield
    except BoneError as error:
        raise BoneError(f"{place}: {str(error).rstrip('.')}.") from None
