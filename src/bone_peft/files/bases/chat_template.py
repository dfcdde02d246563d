"""Chat templates are programs of whoever made the tokenizer: tried in another process before they are used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.io.names import brief

SECONDS = 3
"""Of the processor, above what starting takes; a millisecond is usual."""

_MOST_CHARACTERS = 10**6
_TURNS = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "And 3 + 4?"},
    {"role": "assistant", "content": "7"},
]
# A question, its answer, and what was said before. Not all templates take a system's message, so none is tried.
_TALKS = [(_TURNS[:1], True), (_TURNS[:2], False), (_TURNS[:3], True), (_TURNS, False)]

_CHILD = """
import json, sys
given = json.load(sys.stdin)
from transformers.utils.chat_template_utils import render_jinja_template
try:
    import resource, signal, time
    signal.setitimer(signal.ITIMER_PROF, given["seconds"])
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
    resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
except (ImportError, AttributeError, ValueError, OSError):
    pass  # not on this system
longest = 0
for talk, asks in given["talks"]:
    try:
        text, _ = render_jinja_template([talk], chat_template=given["template"], add_generation_prompt=asks,
                                        **given["tokens"])
        longest = max(longest, len(text[0]))
    except MemoryError:
        sys.exit(1)
    except Exception:
        pass  # a fault, and an end
print(longest)
"""


def check_chat_template(tokenizer: Any) -> None:
    """Render a short talk, if the tokenizer has a template for it.

    Args:
        tokenizer: of a base.

    Raises:
        BoneError: the template does not come to an end, writes without measure, or is faulty.
    """
    templates = getattr(tokenizer, "chat_template", None)
    if not templates or not hasattr(tokenizer, "apply_chat_template"):
        return
    where = tokenizer.name_or_path
    tokens = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    for template in templates.values() if isinstance(templates, Mapping) else [templates]:
        if not isinstance(template, str) or not _ends(template, json.dumps(tokens, sort_keys=True)):
            raise BoneError(
                f"The chat template of {where} does not come to an end, or writes without measure: take another copy."
            )
    try:
        tokenizer.apply_chat_template(_TURNS[:1], tokenize=False, add_generation_prompt=True)
    except Exception as error:
        raise BoneError(f"The chat template of {where} is faulty ({brief(error)}): take another copy.") from None


@lru_cache(64)
def _ends(template: str, tokens: str) -> bool:
    given = {"template": template, "tokens": json.loads(tokens), "talks": _TALKS, "seconds": SECONDS}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD],
            input=json.dumps(given),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=20 * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and int(done.stdout) <= _MOST_CHARACTERS
