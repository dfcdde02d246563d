"""Where versions of PEFT and Transformers differ. Each file says which version needs it; look here when one is dropped.

What is looked for is the feature, not the version, wherever that can be done. Importing this refuses a PEFT that is too
old, before anything is imported from it that it does not have.
"""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

_OLDEST = (0, 18)


def _check_peft() -> None:
    try:
        found = version("peft")
    except PackageNotFoundError:  # not installed as a package: then nothing is known of it
        return
    if Version(found).release < _OLDEST:
        raise ImportError(
            f"bone-peft works with PEFT {'.'.join(map(str, _OLDEST))} and newer, and {found} is installed: type "
            "pip install --upgrade peft."
        )


_check_peft()
