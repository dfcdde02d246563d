"""Keep what is scored out of what is learned."""

from typing import Any


def without(train: Any, held_out: Any) -> Any:
    """Return the rows of ``train`` whose prompt is not in ``held_out``; both as from ``load_data``.

    Generated tasks with different seeds still repeat small problems (``3 + 4``), and files get concatenated;
    a score over rows that were trained on says nothing.
    """
    seen = {_key(prompt) for prompt in held_out["prompt"]}
    keep = [index for index, prompt in enumerate(train["prompt"]) if _key(prompt) not in seen]
    return train if len(keep) == len(train) else train.select(keep)


def _key(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt.strip()
    return "\n".join(f"{message['role']}: {message['content'].strip()}" for message in prompt)
