"""Regular expressions of a config, which may be a stranger's: tried in another process before they are used.

Python's ``re`` can take for ever to find that a name does not match, and cannot be stopped.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from bone_peft.errors import BoneError

SECONDS = 2
"""Of the processor, for all patterns and all names; a few milliseconds are usual."""

_MOST_PATTERNS = 10_000
_MOST_CHARACTERS = 100_000

_PLAIN = re.compile(r"[\w.-]*")

# As PEFT puts them around what a config says. The first two are to match the whole name.
_WHOLE = {"target_modules", "exclude_modules"}
_FRAMES = {
    "modules_to_save": r"(^|.*\.)%s($|\..*)",
    "layers_pattern": r"(?:^|.*?\.)%s\.(?P<idx>\d+)\.",
    "rank_pattern": r"(.*\.)?(%s)$",
    "alpha_pattern": r"(.*\.)?(%s)$",
}

_CHILD = """
import json, re, sys
seconds, patterns, names = json.load(sys.stdin)
try:
    import resource, signal
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
except (ImportError, AttributeError, ValueError, OSError):
    pass  # not on this system
for index, (text, used, whole) in enumerate(patterns):
    print(index, flush=True)
    try:
        re.compile(text)
        used = re.compile(used)
    except (re.error, OverflowError, RecursionError) as error:
        print(str(error) or "it is too deep", flush=True)
        break
    for name in names:
        used.fullmatch(name) if whole else used.match(name)
else:
    print("done")
"""


def check_patterns(config: Mapping[str, Any], names: Iterable[str], where: str = "The config") -> None:
    """Try what PEFT takes as regular expressions on the names that it will be matched with.

    Args:
        config: the options of a method of PEFT, by name.
        names: of modules.
        where: the options come from, to be named in errors.

    Raises:
        BoneError: one is no regular expression, or matching takes longer than any honest one does.
    """
    found = list(_patterns(config))
    if len(found) > _MOST_PATTERNS or any(len(text) > _MOST_CHARACTERS for _, text in found):
        raise BoneError(f"{where} has more or longer patterns than any honest one: is it damaged?")
    odd = [(field, text) for field, text in found if not _PLAIN.fullmatch(text)]
    if not odd:
        return
    last, problem = _tried([(text, _FRAMES.get(field, "%s") % text, field in _WHOLE) for field, text in odd], names)
    if last is None:
        return
    field, text = odd[last]
    shown = ascii(text if len(text) <= 80 else text[:77] + "...")
    if problem is not None:
        raise BoneError(f"{where} has {shown} in {field}, which is no regular expression ({problem}).")
    raise BoneError(
        f"{where} has {shown} in {field}, and matching it with names of modules does not come to an end: write it "
        "without repetitions inside of repetitions."
    )


def pattern_key(patterns: Iterable[str], name: str) -> str:
    """The first of the patterns that ``name`` matches, or ``name``: PEFT's ``get_pattern_key``, for many of them."""
    return next((pattern for pattern in patterns if _compiled(pattern).match(name)), name)


# The cache of `re` is too small where each module has a pattern, and compiling takes longer than matching.
@lru_cache(_MOST_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(_FRAMES["rank_pattern"] % pattern)


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Field and text of each expression."""
    for field in (*_WHOLE, *_FRAMES):
        value = config.get(field)
        if field in _WHOLE:
            value = value if isinstance(value, str) and value != "all-linear" else None
        texts = value if isinstance(value, (list, tuple, set, dict)) else [value]
        yield from ((field, text) for text in texts if isinstance(text, str))


def _tried(patterns: list[tuple[str, str, bool]], names: Iterable[str]) -> tuple[int | None, str | None]:
    """Which pattern was the last if it did not go well, and what is wrong with it if it is none."""
    command = [sys.executable, "-P", "-S", "-c", _CHILD]
    given = json.dumps([SECONDS, patterns, list(names)])
    # `re` itself, of this very Python: another engine would be slow with other patterns.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        try:
            said = child.communicate(given, timeout=20 * SECONDS)[0].splitlines()
        except subprocess.TimeoutExpired:
            child.kill()
            said = child.communicate()[0].splitlines()
    if said and said[-1] == "done":
        return None, None
    problem = None if not said or said[-1].isdigit() else said.pop()
    return int(said[-1]) if said else 0, problem
