"""Plain text around a prompt and its answer."""

from __future__ import annotations

from bone_peft.errors import BoneError


def check(template: str | None) -> None:
    """Raise a BoneError if a prompt or an answer would be lost in ``template``, or be there twice."""
    if template is not None and "{prompt}" not in template:
        raise BoneError("template has no {prompt} in it, so the prompt would be lost; add it where it belongs.")
    if template is not None and template.count("{completion}") > 1:
        raise BoneError("template has {completion} in it more than once; the answer is learned in one place.")


def fill(template: str, prompt: str, completion: str) -> tuple[str, str]:
    """Prompt and completion in their template; the blank before ``{completion}`` is learned, as text is tokenized."""
    before, marker, after = template.partition("{completion}")
    asked = before.rstrip() if marker else before
    answered = before[len(asked) :] + completion + after
    return asked.replace("{prompt}", prompt), answered
