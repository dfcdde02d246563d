"""Tests that need a version of another package: it is said when they are skipped."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def needs(package: str, lowest: str) -> pytest.MarkDecorator:
    installed = version(package)
    return pytest.mark.skipif(Version(installed) < Version(lowest), reason=f"{package} {installed}, needs {lowest}")
