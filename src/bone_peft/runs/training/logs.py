"""Where a run's numbers go besides TensorBoard: Transformers' own callbacks, by their names."""

from typing import Any

from bone_peft.errors import BoneError
from bone_peft.io.names import brief


def check_names(names: list[str]) -> None:
    """Raise a BoneError at a name that Transformers does not know."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise BoneError(f"log: {name!r} is none of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}.")


def callbacks_of(names: list[str]) -> list[Any]:
    """One for each of the names, but for TensorBoard, which every run has.

    Raises:
        BoneError: the package that one is for is not there.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    made = []
    for name in names:
        if name == "tensorboard":
            continue
        try:
            made.append(INTEGRATION_TO_CALLBACK[name]())
        except (RuntimeError, ImportError, ValueError) as error:
            raise BoneError(f"log: {name} cannot be used ({brief(error).rstrip(' .')}).") from error
    return made
