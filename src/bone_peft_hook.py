"""Tells Bone when ``peft`` has been imported. Costs nothing until then: this file needs what Python has loaded anyway.

``import bone_peft`` installs it, and so does the ``.pth`` file that ``bone activate`` writes, at the start of Python.
"""

import sys


class _Finder:
    """Finds ``peft`` as the finders after it do, and has the loader call back once."""

    def __init__(self) -> None:
        self.busy = False

    def find_spec(self, name, path=None, target=None):
        if name != "peft" or self.busy:
            return None
        self.busy = True
        try:
            specs = (
                f.find_spec(name, path, target) for f in sys.meta_path if f is not self and hasattr(f, "find_spec")
            )
            spec = next((spec for spec in specs if spec is not None), None)
        finally:
            self.busy = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            _call_back(spec.loader)
        return spec


def _call_back(loader) -> None:
    def exec_module(module):
        del loader.exec_module  # The loader is as it was again.
        loader.exec_module(module)
        _register()

    loader.exec_module = exec_module


def _register() -> None:
    asked_for = "bone_peft" in sys.modules
    try:
        import bone_peft

        bone_peft.register()
    except Exception as error:
        if asked_for:
            raise
        # Activated, so this may be a program that has nothing to do with Bone.
        import warnings

        warnings.warn(
            f"bone-peft could not make Bone a method of PEFT ({type(error).__name__}: {error}); PEFT works without it. "
            "Type 'bone deactivate' to have it left alone.",
            stacklevel=2,
        )


def install() -> None:
    """Have Bone registered as soon as ``peft`` is imported, or at once if it has been. Doing it twice is harmless."""
    if "peft" in sys.modules:
        _register()
    elif not any(
        type(finder).__name__ == "_Finder" and type(finder).__module__ == __name__ for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _Finder())
