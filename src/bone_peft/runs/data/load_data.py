"""``load_data``: read sources and bring them into the form that training and evaluation share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from bone_peft.errors import BoneError
from bone_peft.files.bases import check_chat_template

from .forms import form_of, rows_of
from .forms.reading import Reading
from .named_files import sources_in
from .sources import read


def load_data(
    source: str | Sequence[str] | Mapping[str, float],
    *,
    tokenizer: Any = None,
    fields: tuple[str, str] | list[str] | None = None,
    chat: bool | None = None,
    template: str | None = None,
    choices: bool = False,
    pairs: bool = False,
) -> Any:
    """Read ``source`` into a :class:`datasets.Dataset` with the columns ``prompt`` and ``completion`` only.

    Args:
        source: a ``.jsonl``, ``.json``, ``.parquet``, ``.csv`` or ``.tsv`` file, a pattern of such files
            (``data/*.jsonl``), ``gym:TASK?key=value``, or a ``datasets`` name. Several are read one after the other; in
            a mapping, each has beside it how often its rows are taken (0.25: a quarter of them, drawn once; 2: twice).
        tokenizer: decides whether rows become chat messages (it has a chat template) when ``chat`` is None.
        fields: names of the prompt and the completion column. Left out, the columns tell: ``prompt`` and
            ``completion``, ``messages`` (and ``tools``), ShareGPT's ``conversations``, Alpaca's ``instruction``,
            ``input`` and ``output``, questions with choices, or whole documents in ``text``.
        chat: True for chat messages, False for plain text, None to follow the tokenizer.
        template: plain text around the prompt, with ``{prompt}`` where it goes; with ``{completion}`` also around the
            answer, as in ``"{prompt} {completion}"``.
        choices: of questions with choices, keep these too.
        pairs: read pairs of a chosen and a rejected answer, and nothing else.

    Returns:
        Rows of two strings; or of two lists of messages, the second of one answer, and of ``tools`` if there are any.
        ``choices`` beside them have the right one first. Of pairs, ``chosen`` and ``rejected`` stand in the place of
        ``completion``.

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
    weights = source if isinstance(source, Mapping) else {}
    each = [source] if isinstance(source, str) else source
    given = [(name, weights.get(one, 1)) for one in each for name in sources_in(one)]
    if not given:
        raise BoneError("data names no source; give a file, a `datasets` name, or gym:TASK.")
    names = [name for name, _ in given]
    tables = [_taken(_read(name, fields, as_chat, template, start, choices, pairs), weight) for name, weight in given]
    if any("tools" in table.column_names for table in tables):
        tables = [_with_tools(table) for table in tables]
    for name, table in zip(names, tables, strict=True):
        if table.features != tables[0].features:
            kinds = "are chats, some plain text" if is_chat(table) != is_chat(tables[0]) else "have choices, some none"
            raise BoneError(f"{names[0]} and {name} do not hold rows of one kind: some {kinds}.")
    return tables[0] if len(tables) == 1 else concatenate_datasets(tables)


@dataclass(frozen=True)
class Found:
    """What a source holds.

    Attributes:
        what: its form, in words.
        columns: their names.
        rows: as from :func:`load_data`.
    """

    what: str
    columns: list[str]
    rows: Any


def look(source: str | Sequence[str], **how: Any) -> Found:
    """Read ``source`` as :func:`load_data` does, and say of its first part which form it was read as."""
    rows = load_data(source, **how)
    columns = read(sources_in(source)[0]).column_names
    return Found(form_of(columns, how.get("fields"), how.get("pairs", False)).WHAT, columns, rows)


def document_start(tokenizer: Any) -> str:
    """The prompt of a document of a ``text`` column: the end of the one before."""
    return getattr(tokenizer, "eos_token", None) or ""


def _read(source: str, fields: Any, as_chat: bool, template: str | None, start: str, choices: bool, pairs: bool) -> Any:
    dataset = read(source)
    if len(dataset) == 0:
        raise BoneError(f"{source} holds no rows; there is nothing to learn or to score.")
    return rows_of(dataset, Reading(source, as_chat, fields, template, start, choices, pairs))


def _taken(table: Any, weight: float) -> Any:
    """Each row as often as ``weight`` says."""
    if weight == 1:
        return table
    whole, part = divmod(weight, 1)
    rows = range(len(table))
    more = sorted(Random(0).sample(rows, max(round(part * len(rows)), int(whole == 0))))
    return table.select([*(int(whole) * [*rows]), *more])


def _with_tools(table: Any) -> Any:
    """Chats of several sources, of which some have tools."""
    from datasets import Dataset, Features, Json, List, concatenate_datasets

    if "tools" in table.column_names or not is_chat(table):
        return table
    none = Dataset.from_dict({"tools": [None] * len(table)}, features=Features({"tools": List(Json())}))
    return concatenate_datasets([table, none], axis=1)


def is_chat(table: Any) -> bool:
    """Whether rows from :func:`load_data` are of messages."""
    return "prompt" in table.column_names and not isinstance(table[0]["prompt"], str)
