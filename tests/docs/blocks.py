"""The blocks of code of a page, and what its markers say of them.

A marker is a comment of HTML in the line before a block, which no reader sees: ``<!-- not run: REASON -->``, or
``<!-- file: NAME -->`` for what the blocks after it read.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

_MARKER = re.compile(r"<!-- (not run|file): (.+?) -->\s*")
_SHELL = ("", "bash", "sh")
_PROSE = ("text", "math")


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        line: of the page, where the text begins; from 1.
        kind: ``"python"``, ``"shell"``, or the language of a file.
        marker: ``"not run"``, ``"file"`` or ``""``.
        says: what stands in the marker.
    """

    line: int
    kind: str
    text: str
    marker: str = ""
    says: str = ""


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page that hold code, in their order; those without a language are of the shell."""
    found, marker = [], ("", "")
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            language = token.info.strip()
            if language not in _PROSE:
                kind = "shell" if language in _SHELL else language
                first = token.map[0] + (2 if token.type == "fence" else 1)
                found.append(Block(first, kind, token.content, *marker))
        said = _MARKER.fullmatch(token.content) if token.type == "html_block" else None
        marker = (said[1], said[2]) if said else ("", "")
    return found
