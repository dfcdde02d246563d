"""Code that a base brings along. It is run only where the user said so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bone_peft.errors import BoneError


@contextmanager
def not_run(base: object) -> Iterator[None]:
    """Say it in one sentence if Transformers would have to run the code of ``base``, and was told not to."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise needed(base) from None


def needed(base: object) -> BoneError:
    return BoneError(
        f"{base} needs Python code that comes with it, which is not run: read that code, and pass --trust-remote-code "
        "(trust_remote_code=True) if you trust it."
    )
