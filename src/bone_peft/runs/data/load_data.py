"""``load_data``: read a source and bring it into the form that training and evaluation share."""

from typing import Any

from bone_peft.errors import BoneError
from bone_peft.files.bases import check_chat_template
from bone_peft.io.place import with_home

from . import rows
from .sources import read


def load_data(
    source: str,
    *,
    tokenizer: Any = None,
    fields: tuple[str, str] | list[str] | None = None,
    chat: bool | None = None,
    template: str | None = None,
) -> Any:
    """Read ``source`` into a :class:`datasets.Dataset` with the columns ``prompt`` and ``completion`` only.

    Args:
        source: a ``.jsonl``, ``.json`` or ``.parquet`` file, ``gym:TASK?key=value``, or a ``datasets`` name.
        tokenizer: decides whether rows become chat messages (it has a chat template) when ``chat`` is None.
        fields: names of the prompt and the completion column. Left out, ``prompt``/``completion``, a chat column
            ``messages`` or a column ``text`` of whole documents is used.
        chat: True for chat messages, False for plain text, None to follow the tokenizer.
        template: plain text around the prompt, with ``{prompt}`` where it goes; with ``{completion}`` also around the
            answer, as in ``"{prompt} {completion}"``.

    Returns:
        Rows of two strings, or of two lists of ``{"role", "content"}`` messages.

    Raises:
        BoneError: the source cannot be read, has no rows, or lacks the fields.
    """
    source = with_home(source)
    dataset = read(source)
    if len(dataset) == 0:
        raise BoneError(f"{source} holds no rows; there is nothing to learn or to score.")
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat and not has_template:
        raise BoneError("chat is set, but this base's tokenizer has no chat template; leave chat out.")
    as_chat = has_template if chat is None else chat
    if as_chat:
        check_chat_template(tokenizer)
    if fields is None and "messages" in dataset.column_names:
        if not as_chat:
            raise BoneError(
                f"{source} holds chat messages, which need a base with a chat template and no --no-chat; "
                "name plain columns with --fields instead."
            )
        return rows.from_messages(dataset, source)
    if fields is None and "text" in dataset.column_names and "prompt" not in dataset.column_names:
        return rows.from_text(dataset, source, start=getattr(tokenizer, "eos_token", None) or "")
    return rows.from_columns(dataset, source, fields=fields, chat=as_chat, template=template)
