"""What pyproject.toml cannot say: where the project lives, and a README whose links lead there from a package index.

``PROJECT_URL`` is the address of the repository (docs/releasing.md); without it, links stay as they are.
"""

import os
import re
from email import message_from_string
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "src/bone_peft/__init__.py").read_text()).group(1)


def address() -> str:
    packed = HERE / "PKG-INFO"  # that of a source distribution, which is built once more to be installed
    if "PROJECT_URL" not in os.environ and packed.exists():
        known = dict(u.split(", ", 1) for u in message_from_string(packed.read_text()).get_all("Project-URL") or ())
        return known.get("Repository", "")
    return os.environ.get("PROJECT_URL", "").rstrip("/")


def absolute(text: str, url: str) -> str:
    """``text`` with the links to files of the project as links to this version's files at ``url``."""

    def link(found: re.Match) -> str:
        kind = "raw" if found[1].endswith((".png", ".svg")) else "blob"
        return f"]({url}/{kind}/v{VERSION}/{found[1]})"

    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", link, text)


URL = address()
README = (HERE / "README.md").read_text()
setup(
    version=VERSION,
    long_description=absolute(README, URL) if URL else README,
    long_description_content_type="text/markdown",
    project_urls={
        "Repository": URL,
        "Documentation": f"{URL}#readme",
        "Changelog": f"{URL}/blob/v{VERSION}/CHANGELOG.md",
        "Issues": f"{URL}/issues",
    }
    if URL
    else {},
)
