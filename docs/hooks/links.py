"""Links within the repository, as links of the site. What lies outside ``docs/`` comes in, as ``repository/``."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = "repository/"
ALWAYS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def in_repository(uri: str) -> str:
    """The path of a page or file of the site, from the root of the repository."""
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else f"docs/{uri}"


def in_site(path: str) -> str:
    """The way back."""
    return path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE + path


def targets(text: str, path: str) -> list[str]:
    """The files of the repository that the page at ``path`` links to."""
    found = (posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in _LINK.findall(text))
    return [target for target in found if not target.startswith("..") and (ROOT / target).is_file()]


def on_files(files: Files, config: Any) -> Files:
    waiting = [*ALWAYS, *(f"docs/{file.src_uri}" for file in files.documentation_pages() if file.generated_by is None)]
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(in_site(path)) is None:
            files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
            if not path.endswith(".md"):
                continue
        new = targets((ROOT / path).read_text(encoding="utf-8"), path)
        waiting += [target for target in new if files.get_file_from_path(in_site(target)) is None]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = in_repository(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[1]))
        if not (ROOT / target).is_file():
            return found[1]
        return posixpath.relpath(in_site(target), posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(link, markdown)
