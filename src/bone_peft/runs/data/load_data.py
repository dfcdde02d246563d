"""``load_data``: read sources and bring them into the form that training and evaluation share."""

from collections.abc import Sequence
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.files.bases import check_chat_template

from . import rows
from .named_files import sources_in
from .sources import read


def load_data(
    source: str | Sequence[str],
    *,
    tokenizer: Any = None,
    fields: tuple[str, str] | list[str] | None = None,
    chat: bool | None = None,
    template: str | None = None,
) -> Any:
    """Read ``source`` into a :class:`datasets.Dataset` with the columns ``prompt`` and ``completion`` only.

    Args:
        source: a ``.jsonl``, ``.json`` or ``.parquet`` file, a pattern of such files (``data/*.jsonl``),
            ``gym:TASK?key=value``, or a ``datasets`` name; or several, whose rows follow each other.
        tokenizer: decides whether rows become chat messages (it has a chat template) when ``chat`` is None.
        fields: names of the prompt and the completion column. Left out, ``prompt``/``completion``, a chat column
            ``messages`` or a column ``text`` of whole documents is used.
        chat: True for chat messages, False for plain text, None to follow the tokenizer.
        template: plain text around the prompt, with ``{prompt}`` where it goes; with ``{completion}`` also around the
            answer, as in ``"{prompt} {completion}"``.

    Returns:
        Rows of two strings, or of two lists of ``{"role", "content"}`` messages.

    Raises:
        BoneError: a source cannot be read, has no rows, or lacks the fields; or one holds chats and another does not.
    """
    from datasets import concatenate_datasets

    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat and not has_template:
        raise BoneError("chat is set, but this base's tokenizer has no chat template; leave chat out.")
    start = document_start(tokenizer)
    as_chat = has_template if chat is None else chat
    if as_chat:
        check_chat_template(tokenizer)
    names = sources_in(source)
    if not names:
        raise BoneError("data names no source; give a file, a `datasets` name, or gym:TASK.")
    tables = [_read(name, fields, as_chat, template, start) for name in names]
    for name, table in zip(names, tables, strict=True):
        if table.features != tables[0].features:
            raise BoneError(f"{names[0]} and {name} do not hold rows of one kind: some are chats, some plain text.")
    return tables[0] if len(tables) == 1 else concatenate_datasets(tables)


def document_start(tokenizer: Any) -> str:
    """The prompt of a document of a ``text`` column: the end of the one before."""
    return getattr(tokenizer, "eos_token", None) or ""


def _read(source: str, fields: Any, as_chat: bool, template: str | None, start: str) -> Any:
    dataset = read(source)
    if len(dataset) == 0:
        raise BoneError(f"{source} holds no rows; there is nothing to learn or to score.")
    names = dataset.column_names
    if fields is None and "messages" in names:
        if not as_chat:
            raise BoneError(
                f"{source} holds chat messages, which need a base with a chat template and no --no-chat; "
                "name plain columns with --fields instead."
            )
        _refuse_template(template, source, "chat messages")
        return rows.from_messages(dataset, source)
    if fields is None and "text" in names and "prompt" not in names:
        _refuse_template(template, source, "whole documents (`text`)")
        return rows.from_text(dataset, source, start=start)
    return rows.from_columns(dataset, source, fields=fields, chat=as_chat, template=template)


def _refuse_template(template: str | None, source: str, what: str) -> None:
    if template is not None:
        raise BoneError(f"{source} holds {what}, and template is for a prompt and an answer: leave it out.")
