"""``bone train --dry-run``: rows as the model meets them, and what the run would take. Nothing is learned."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bone_peft.io.names import printable
from bone_peft.method import BoneConfig

from ..free_memory import free_bytes

_ROWS, _TOKENS, _BARS, _KINDS = 3, 300, 8, 8


@dataclass(frozen=True)
class Extent:
    """How much there is to learn from.

    Attributes:
        rows: lines of tokens; packed, several rows of the data are one. Or pairs.
        tokens: of all rows, as they are cut.
        learned: those of them that the loss is over.
        longest: tokens of a row.
        steps: of the optimizer, in all.
        a_step: rows of one, over all processes.
        what: they are called.
    """

    rows: int
    tokens: int
    learned: int
    longest: int
    steps: int
    a_step: int
    what: str = "rows"

    @classmethod
    def of(cls, trainer: Any, processes: int) -> Extent:
        """Of a trainer whose settings were tried, with rows of their own in so many processes."""
        args, learned = trainer.args, 0
        lengths: list[int] = []
        for batch in _batches(trainer.seen, "labels"):
            lengths += batch.value_lengths().to_pylist()
            learned += int((batch.values.to_numpy() != -100).sum())
        a_step = args.train_batch_size * args.gradient_accumulation_steps * processes
        rows = len(lengths) // len(trainer.parts)
        return cls(rows, sum(lengths), learned, max(lengths), trainer.planned_steps, a_step, f"{trainer.row}s")

    def __str__(self) -> str:
        return (
            f"{self.rows:,} {self.what} of {self.tokens:,} tokens, {self.learned:,} of them learned; {self.steps:,} "
            f"steps of {self.a_step} {self.what}."
        )


def settings_of(trainer: Any) -> str:
    """What decides how much is learned: the adapter and its learning rate, in a line."""
    args, adapter = trainer.args, getattr(trainer.plain_model, "active_peft_config", None)
    warm_up = args.get_warmup_steps(trainer.planned_steps)
    rate = f"learning rate {args.learning_rate:g}, {getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}"
    if warm_up and args.lr_scheduler_type != "constant":
        rate += f" after {warm_up} steps of warm-up"
    if not isinstance(adapter, BoneConfig):
        return f"{rate.capitalize()}."
    variant = adapter.variant
    size = f"{variant.size_field} {getattr(adapter, variant.size_field)}"
    return f"{variant.name.capitalize()}, {size}, on {_in_kinds(trainer.plain_model.targeted_module_names)}; {rate}."


def _in_kinds(modules: list[str]) -> str:
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in modules))
    more = f" and {len(kinds) - _KINDS} kinds more" if len(kinds) > _KINDS else ""
    return f"{len(modules):,} modules ({', '.join(kinds[:_KINDS])}{more})"


def show(trainer: Any, tokenizer: Any, console: Console) -> None:
    """The first rows with what is learned marked, lengths, memory and time."""
    rows = trainer.seen
    for index, title in zip(range(min(_ROWS + len(trainer.parts) - 1, len(rows))), trainer.titles(), strict=False):
        console.rule(title, align="left")
        console.print(_marked(rows[index], tokenizer, colour=console.color_system is not None))
    console.rule("all rows", align="left")
    console.print(_histogram([n for batch in _batches(rows, "input_ids") for n in batch.value_lengths().to_pylist()]))
    for sentence in (_memory(trainer), _time(trainer), "Nothing was trained (--dry-run)."):
        console.print(sentence, highlight=False)


def _batches(rows: Any, column: str) -> Any:
    for batch in rows.select_columns(column).with_format("arrow").iter(batch_size=1000):
        yield batch[column].combine_chunks()


def _marked(row: dict[str, Any], tokenizer: Any, *, colour: bool) -> Text:
    """What is learned is green, or stands in double brackets where there is no colour."""
    text, place, count = Text(), 0, len(row["input_ids"])
    shown = [*range(min(count, _TOKENS)), *range(max(_TOKENS, count - _TOKENS), count)]
    tail = max(_TOKENS, count - _TOKENS)
    for (learned, _), group in groupby(shown, key=lambda index: (row["labels"][index] != -100, index >= tail)):
        places = list(group)
        if places[0] > place:
            text.append(f" ... {places[0] - place} tokens ... ", style="dim")
        part = printable(tokenizer.decode([row["input_ids"][index] for index in places]))
        text.append(part if colour or not learned else f"⟦{part}⟧", style="green" if learned else "")
        place = places[-1] + 1
    return text


def _histogram(lengths: list[int]) -> Table:
    table = Table("tokens", "rows", "", box=None)
    shortest, longest = min(lengths), max(lengths)
    width = -(-(longest - shortest + 1) // _BARS)
    starts = range(shortest, longest + 1, width)
    counts = [sum(start <= length < start + width for length in lengths) for start in starts]
    for start, count in zip(starts, counts, strict=True):
        table.add_row(f"{start} to {start + width - 1}", f"{count:,}", Bar(max(counts), 0, count, width=40))
    return table


def _memory(trainer: Any) -> str:
    model = trainer.plain_model
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # Weights, gradient and AdamW's two moments, in float32; the weights are counted with the base.
    parts = {"base and adapter": model.get_memory_footprint(), "optimizer and gradients": 12 * trained}
    step = trainer.bytes_of_a_step()
    said = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in (parts | {"a step at most": step}).items())
    total = (sum(parts.values()) + step) / 2**30
    free = free_bytes(trainer.args.device)
    there = "" if free is None else f" {(free + model.get_memory_footprint()) / 2**30:.1f} GiB are there."
    return f"Memory: {total:.2f} GiB ({said}).{there}"


def _time(trainer: Any) -> str:
    steps = trainer.planned_steps
    seconds = trainer.seconds_of_a_batch() * trainer.args.gradient_accumulation_steps * steps
    return f"Time: {_in_words(seconds)} or less for {steps:,} steps, by two batches that were tried."


def _in_words(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
